"""`jaxnn card`: a card of the runs of two seeds; what is none is a line and status 1."""

from jaxnn import cli, runs


def make(path, seed):
    folder = runs.RunFolder.create(path, {"fit": {"seed": seed}}, environment={})
    folder.metrics.append({"step": 1, "val_loss": 0.5 + seed})
    return str(path)


def test_a_card_is_written_and_named(tmp_path, capsys):
    a, b, out = make(tmp_path / "a", 0), make(tmp_path / "b", 1), tmp_path / "docs" / "two"
    assert cli.main(["card", a, b, "--out", str(out), "--title", "Two"]) == 0
    assert capsys.readouterr().out == f"{out}.md\n"
    assert out.with_suffix(".md").read_text().startswith("# Two\n")


def test_what_cannot_be_a_card_is_one_line_and_status_1(tmp_path, capsys):
    a = make(tmp_path / "a", 0)
    (tmp_path / "file").write_text("")
    for argv, told in (
        ([str(tmp_path / "none"), "-o", "x"], "jaxnn card: runs.read_record: "),
        ([a, "-o", str(tmp_path)], "jaxnn card: runs.write_card: "),
        ([a, "-o", str(tmp_path / "file" / "x")], "cannot be written: "),
    ):
        assert cli.main(["card", *argv]) == 1
        err = capsys.readouterr().err
        assert told in err
        assert err.count("\n") == 1
