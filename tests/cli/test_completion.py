"""Completion, asked of the shells themselves: the script is sourced, and completes what a person has typed."""

import argparse
import shutil
import subprocess
import sys

import pytest

from jaxnn import cli
from jaxnn.cli import completion

needs = {
    name: pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")
    for name in completion.SHELLS
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    for shell in completion.SHELLS:
        (folder / shell).write_text(completion.script(shell, cli.make_parser()) + "\n")
    return folder


def in_bash(script, line, cwd):
    """What bash offers for a line whose last word is being typed."""
    words = line.split(" ")
    code = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _jaxnn; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code, script, *words], capture_output=True, text=True, cwd=cwd)
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


@needs["bash"]
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("jaxnn ", ["doctor", "checkpoint", "report", "card", "bench", "new", "completion"]),
        ("jaxnn ch", ["checkpoint"]),
        ("jaxnn checkpoint ", ["list", "verify", "inspect"]),
        ("jaxnn bench ex", ["export", "explain"]),
        ("jaxnn new --k", ["--kind"]),
        ("jaxnn new mine --kind ", ["regression", "image", "text", "csv"]),
        ("jaxnn new mine --kind t", ["text"]),
        ("jaxnn completion z", ["zsh"]),
        ("jaxnn checkpoint inspect run --step ", [""]),  # a number: nothing to offer
        ("jaxnn report --x e", ["epoch"]),
        ("jaxnn nonsense x", [""]),
    ],
)
def test_bash_completes(scripts, tmp_path, line, offered):
    found = in_bash(scripts / "bash", line, tmp_path)
    assert [name for name in found if name in offered] == offered
    assert len(found) == len(offered) or line == "jaxnn "


@needs["bash"]
def test_bash_completes_files_where_files_are_wanted(scripts, tmp_path):
    (tmp_path / "my run").mkdir()
    (tmp_path / "mine.html").touch()
    for line in ("jaxnn report m", "jaxnn report -o m", "jaxnn checkpoint list m", "jaxnn bench run --out m"):
        assert sorted(in_bash(scripts / "bash", line, tmp_path)) == ["mine.html", "my run"]
    assert in_bash(scripts / "bash", "jaxnn report --x m", tmp_path) == [""]


@needs["fish"]
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("jaxnn ch", ["checkpoint"]),
        ("jaxnn bench ex", ["explain", "export"]),
        ("jaxnn new mine --kind t", ["text"]),
        ("jaxnn new --k", ["--kind"]),
        ("jaxnn completion ", ["bash", "fish", "zsh"]),
    ],
)
def test_fish_completes(scripts, tmp_path, line, offered):
    code = f"source {scripts / 'fish'}; complete -C '{line}'"
    env = {"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, env=env)
    assert [row.split("\t")[0] for row in done.stdout.splitlines()] == offered, done.stderr


@needs["zsh"]
def test_zsh_reads_its_script(scripts):
    subprocess.run(["zsh", "-n", scripts / "zsh"], check=True)
    code = f"autoload -Uz compinit; compinit -u -D; source {scripts / 'zsh'}; print $_comps[jaxnn]"
    done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("_jaxnn\n", "")


def test_every_command_and_option_of_the_parser_is_in_every_script(scripts):
    flags, names = set(), set()

    def look(parser):
        for action in parser._actions:
            flags.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                names.update(action.choices)
                for child in action.choices.values():
                    look(child)

    look(cli.make_parser())
    assert {"--out", "-o", "--kind"} <= flags
    for shell in completion.SHELLS:
        text = (scripts / shell).read_text()
        spelled = (
            [f"-l {f[2:]} " if f.startswith("--") else f"-s {f[1:]} " for f in flags] if shell == "fish" else flags
        )
        assert [word for word in [*names, *spelled] if word not in text] == []


def test_help_with_quotes_and_colons_stays_one_word():
    parser = argparse.ArgumentParser("jaxnn")
    odd = "it's a: 'b' $HOME `x` \\ \"q\" 3 %%"
    parser.add_subparsers().add_parser("one", help=odd).add_argument("--odd", help=odd)
    for shell in completion.SHELLS:
        text = completion.script(shell, parser)
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_the_command_prints_the_script_and_refuses_other_shells(capsys):
    assert cli.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out.endswith("complete -F _jaxnn jaxnn\n")
    with pytest.raises(SystemExit) as error:
        cli.main(["completion", "tcsh"])
    assert error.value.code == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err


def test_the_script_is_made_without_jax():
    code = "import sys, jaxnn.cli; jaxnn.cli.main(['completion', 'bash']); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("\nFalse\n")
