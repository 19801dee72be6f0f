import os
import sysconfig
from pathlib import Path

import pytest

from jaxnn.data import stdlib_files


def make(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = 1\n")


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    make(tmp_path, [f"m{i}.py" for i in range(200)] + ["json/decoder.py"])
    return tmp_path


def test_this_python_s_library():
    train, held_out = stdlib_files()
    root = Path(sysconfig.get_path("stdlib"))
    names = [f.relative_to(root).as_posix() for f in train + held_out]
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert len(names) == len(set(names)) > 300
    forbidden = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    assert not [n for n in names if forbidden & set(n.split("/"))]
    assert 0.05 < len(held_out) / len(names) < 0.15
    assert all(f.stat().st_size for f in train + held_out)
    assert [[f.name for f in side] for side in stdlib_files()] == [[f.name for f in side] for side in (train, held_out)]


def test_what_is_left_out(library):
    before = stdlib_files()
    folders = ("site-packages/a", "dist-packages", "test", "json/tests", "idlelib/idle_test", "__pycache__")
    make(library, [f"{f}/x.py" for f in folders] + ["_sysconfigdata__linux.py", "notes.txt"])
    (library / "empty.py").touch()
    os.symlink(library / "m0.py", library / "link.py")
    assert stdlib_files() == before


def test_a_file_keeps_its_side(library):
    train, held_out = stdlib_files(0.2)
    assert 20 < len(held_out) < 60
    make(library, [f"new{i}.py" for i in range(50)])
    (library / "m5.py").unlink(missing_ok=True)
    train_2, held_out_2 = stdlib_files(0.2)
    assert set(held_out) - {library / "m5.py"} <= set(held_out_2)
    assert set(train) - {library / "m5.py"} <= set(train_2)
    assert stdlib_files(0.2, seed=1)[1] != held_out_2
    assert set(held_out_2) <= set(stdlib_files(0.4)[1])
    names = [f.relative_to(library).as_posix() for f in train_2]
    assert names == sorted(names)
    assert stdlib_files(0)[1] == []


def test_bad_input(library, monkeypatch):
    with pytest.raises(ValueError, match=r"data.stdlib_files: held_out is 1"):
        stdlib_files(1)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library / "nowhere"))
    with pytest.raises(ValueError, match=r"data.stdlib_files: 0 files in .*nowhere' give 0 and 0"):
        stdlib_files()
