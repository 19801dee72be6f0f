"""Blocks of two processes: written apart, put together, and damage told."""

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from jaxnn import parallel
from jaxnn.runs import reading, spread, stored, writing
from jaxnn.runs.spread import Block, Spread

VALUES = np.arange(24, dtype=np.float32).reshape(6, 4)


def part(first, last):
    """Rows of VALUES, and a column of a matrix of int8 that only one process has something of."""
    mine = [Block(((first, last), (0, 4)), VALUES[first:last].copy())]
    other = [Block(((0, 3), (1, 2)), np.full((3, 1), 7, np.int8))] if first else []
    rest = [Block(((0, 3), (0, 1)), np.full((3, 1), 5, np.int8))] if first else []
    return {"a/w": Spread((6, 4), np.dtype(np.float32), mine), "q": Spread((3, 2), np.dtype(np.int8), other + rest)}


@pytest.fixture
def paths(tmp_path):
    return {process: tmp_path / f"part{process}" for process in (0, 1)}


@pytest.fixture
def checkpoint(tmp_path, paths):
    spread.write(paths[0], part(0, 2))
    spread.write(paths[1], part(2, 6))
    target = tmp_path / "writing-00000003-1"
    writing.write(target, 3, {"b": np.ones(2), **part(0, 2)}, "{}", None, paths)
    return target.rename(tmp_path / "00000003")


def test_parts_are_put_together(checkpoint, paths):
    assert stored.verify(checkpoint) == []
    arrays, problems = reading.read_arrays(checkpoint)
    assert problems == []
    assert list(arrays) == ["b", "a/w", "q"]
    np.testing.assert_array_equal(arrays["a/w"], VALUES)
    np.testing.assert_array_equal(arrays["q"], [[5, 7]] * 3)
    assert arrays["q"].dtype == np.int8
    assert not any(path.exists() for path in paths.values())


def test_damage_is_named_by_file_and_by_array(checkpoint):
    blocks = checkpoint / "parts-1" / "blocks"
    whole = blocks.read_bytes()
    blocks.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert [line.split(":")[0] for line in stored.verify(checkpoint)] == ["parts-1/blocks"]
    assert reading.read_arrays(checkpoint)[1][0].startswith("array a/w in parts-1: crc32")
    blocks.unlink()
    assert stored.verify(checkpoint) == ["parts-1/blocks: missing"]


def test_a_part_that_is_left_out_is_told(checkpoint):
    (checkpoint / "parts-1" / "index").write_text("{}")
    assert "array a/w: 16 of its elements are in no part" in reading.read_arrays(checkpoint)[1]


def test_a_process_that_cannot_write_says_why(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(spread, "PATIENCE_S", 5.0)
    spread.write(paths[0], part(0, 2))
    paths[1].with_name(paths[1].name + spread.HIDDEN).mkdir()  # in the way
    with pytest.raises(FileExistsError):
        spread.write(paths[1], part(2, 6))
    with pytest.raises(RuntimeError, match="process 1 could not write its part: FileExistsError"):
        writing.write(tmp_path / "writing-00000003-1", 3, part(0, 2), "{}", None, paths)


def test_a_process_that_writes_nothing_is_not_waited_for_for_ever(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(spread, "PATIENCE_S", 0.1)
    spread.write(paths[0], part(0, 2))
    with pytest.raises(RuntimeError, match=r"process 1 has not written its part within 0 s; .* all processes see"):
        writing.write(tmp_path / "writing-00000003-1", 3, part(0, 2), "{}", None, paths)


def test_only_the_blocks_that_are_asked_for_are_read(checkpoint, monkeypatch):
    array = reading.open_arrays(checkpoint)[0]["a/w"]
    read, real = [], spread.Stored._read
    monkeypatch.setattr(spread.Stored, "_read", lambda self, at, *rest: read.append(at) or real(self, at, *rest))
    for rows in (slice(0, 2), slice(1, 4), slice(3, 6), slice(None)):
        for columns in (slice(None), slice(1, 3)):
            np.testing.assert_array_equal(array[rows, columns], VALUES[rows, columns])
    first, second = ((0, 2), (0, 4)), ((2, 6), (0, 4))
    assert read == [first] * 2 + [first, second] * 2 + [second] * 2 + [first, second] * 2
    placed = parallel.place(array, SingleDeviceSharding(jax.devices()[0]))
    np.testing.assert_array_equal(placed, VALUES)


def test_a_block_that_changes_after_it_was_verified_is_refused(checkpoint):
    array = reading.open_arrays(checkpoint)[0]["a/w"]
    blocks = checkpoint / "parts-1" / "blocks"
    whole = blocks.read_bytes()
    blocks.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    np.testing.assert_array_equal(array[:2, :], VALUES[:2])
    with pytest.raises(RuntimeError, match="array a/w in parts-1: crc32"):
        array[2:, :]
