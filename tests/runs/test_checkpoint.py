"""Checkpoints: what goes in comes out, damage is found and named, and nothing is lost by a save in flight."""

import json
import math
import os
import shutil
import threading
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnn import runs
from jaxnn.runs import reading, stored, writing


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "params": {"dense": {"kernel": jnp.asarray(rng.standard_normal((5, 3)), jnp.float32), "bias": np.zeros(3)}},
        "half": jnp.asarray(rng.standard_normal(7), jnp.bfloat16),
        "odd": (np.array([True, False]), np.arange(4, dtype=np.uint32), np.ones(2, ml_dtypes.int4), np.ones(1, "c8")),
        "empty": np.zeros((0, 3), np.float32),
        "step": np.int32(3),
    }


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def files_of(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def two_good(tmp_path_factory):
    """A folder with good checkpoints 1 and 2 of different values, to be copied by each test that damages it."""
    folder = tmp_path_factory.mktemp("good")
    with runs.Checkpoints(folder) as c:
        for step in (1, 2):
            c.save(step, make_state(step), {"pending": [{"step": step}]})
        c.mark_good(2)
    return folder


@pytest.fixture
def good(two_good, tmp_path):
    return shutil.copytree(two_good, tmp_path / "copy")


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path):
    state = make_state()
    extra = {"hooks": {"stop": {"best": math.inf, "left": 3}}, "rows": [1.1, None, True, "ü"], "pi": math.pi}
    with runs.Checkpoints(tmp_path) as c:
        c.save(7, state, extra, metric=0.5)
        c.mark_good(7)
        back = c.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))
    assert (back.step, back.extra, back.set_aside) == (7, extra, [])
    assert_same(state, back.state)


def test_replicated_and_sharded_arrays_are_saved_as_their_global_values(tmp_path, devices8):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,), devices=devices8)
    x = np.arange(32, dtype=np.float32).reshape(16, 2)
    state = {
        "replicated": jax.device_put(x, NamedSharding(mesh, PartitionSpec())),
        "sharded": jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))),
    }
    with runs.Checkpoints(tmp_path) as c:
        c.save(0, state, {}, wait=True)
        assert_same({"replicated": x, "sharded": x}, c.restore(state, step=0).state)


def test_the_state_may_be_donated_right_after_save(tmp_path, monkeypatch):
    release = threading.Event()
    write = writing.write
    monkeypatch.setattr(writing, "write", lambda *a: (release.wait(30), write(*a)))
    overwrite = jax.jit(lambda t: jax.tree.map(lambda x: x * 0 - 1, t), donate_argnums=0)
    state = {"w": jnp.arange(1000.0), "n": np.arange(10.0)}
    pointer = state["w"].unsafe_buffer_pointer()
    with runs.Checkpoints(tmp_path) as c:
        c.save(1, state, {})
        after = overwrite({"w": state["w"]})
        state["n"][:] = -1
        assert after["w"].unsafe_buffer_pointer() == pointer  # the donation was not prevented by the save
        release.set()
        c.wait()
        back = c.restore(state, step=1).state
    np.testing.assert_array_equal(back["w"], np.arange(1000.0, dtype=np.float32))
    np.testing.assert_array_equal(back["n"], np.arange(10.0))


def test_save_returns_before_the_write_ends_and_a_second_save_waits(tmp_path, monkeypatch):
    release = threading.Event()
    write = writing.write
    monkeypatch.setattr(writing, "write", lambda *a: (release.wait(30), write(*a)))
    with runs.Checkpoints(tmp_path) as c:
        c.save(1, {"x": np.ones(2)}, {})
        assert c.latest() is None
        c.mark_good(1)  # arrives before the commit, and must not be forgotten
        assert c.good_steps() == []
        threading.Timer(0.05, release.set).start()
        c.save(2, {"x": np.ones(2)}, {})
        assert c.latest() in (1, 2)
        c.wait()
        assert c.good_steps() == [1]
        assert c.restore({"x": np.ones(2)}).step == 1


def test_only_checkpoints_up_to_the_marked_step_are_good(tmp_path):
    with runs.Checkpoints(tmp_path) as c:
        for step in (10, 20, 30):
            c.save(step, {"x": np.ones(1)}, {}, wait=True)
        c.mark_good(25)
        assert c.good_steps() == [10, 20]
        assert c.latest() == 30
        c.mark_good(40)
        assert c.good_steps() == [10, 20, 30]
        assert c.discard_after(20) == [30]
        c.save(30, {"x": np.ones(1)}, {}, wait=True)  # saved again after a rewind: not yet known to be finite
        assert c.good_steps() == [10, 20]


def test_a_failed_background_save_is_raised_at_the_next_call_and_leaves_nothing(tmp_path, monkeypatch):
    c = runs.Checkpoints(tmp_path)
    c.save(1, {"x": np.ones(2)}, {}, wait=True)
    monkeypatch.setattr(
        stored, "write_seal", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    c.save(2, {"x": np.ones(2)}, {})
    with pytest.raises(RuntimeError, match=r"save of step 2 .* failed: OSError: .*No space left"):
        c.save(3, {"x": np.ones(2)}, {})
    c.close()
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]


def test_retention_keeps_the_last_the_best_and_the_newest_good(tmp_path):
    def saved(**options):
        with runs.Checkpoints(tmp_path / str(len(options)), **options) as c:
            for step, metric in enumerate([math.nan, 1.0, 5.0, 3.0, 4.0, 6.0]):
                c.save(step, {"x": np.ones(1)}, {}, metric=metric)
                if step == 2:
                    c.mark_good(2)
            c.wait()
            return stored.steps(c.folder), c.good_steps()

    assert saved(keep=2) == ([2, 4, 5], [2])
    assert saved(keep=1, keep_best="min") == ([1, 2, 5], [1, 2])


def test_the_best_is_remembered_across_processes(tmp_path):
    for step, metric in ((1, 0.1), (2, 0.9), (3, 0.5)):
        with runs.Checkpoints(tmp_path, keep=1, keep_best="max") as c:
            c.save(step, {"x": np.ones(1)}, {}, metric=metric)
    assert stored.steps(tmp_path) == [2, 3]


def test_saving_a_step_again_replaces_it(tmp_path):
    with runs.Checkpoints(tmp_path) as c:
        c.save(1, {"x": np.zeros(2)}, {})
        c.mark_good(1)
        c.save(1, {"x": np.ones(2)}, {"again": True})
        back = c.restore({"x": np.ones(2)})
    assert (back.state["x"].tolist(), back.extra) == ([1, 1], {"again": True})


def flip(path, offset, bit):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_a_flipped_bit_anywhere_is_found_and_the_previous_good_one_used(good):
    path = good / "00000002"
    damaged = 0
    for file in files_of(path):
        content = file.read_bytes()
        for offset in sorted({0, 1, len(content) // 3, len(content) // 2, len(content) - 2, len(content) - 1}):
            for bit in (0, 3, 7):
                flip(file, offset, bit)
                problems = stored.verify(path)
                assert problems, f"bit {bit} of byte {offset} of {file.name} went unnoticed"
                assert problems[0].split(":")[0] in str(file.relative_to(path))
                damaged += 1
            file.write_bytes(content)
    assert damaged > 100
    assert stored.verify(path) == []


@pytest.mark.parametrize("harm", ["flip", "truncate", "extend", "delete"])
def test_restore_sets_damage_aside_by_name_and_goes_back_one(good, harm):
    path = good / "00000002"
    file = max(files_of(path / "arrays"), key=lambda p: p.stat().st_size)
    if harm == "flip":
        flip(file, file.stat().st_size // 2, 4)
    elif harm == "truncate":
        os.truncate(file, file.stat().st_size - 1)
    elif harm == "extend":
        file.write_bytes(file.read_bytes() + b"\0")
    else:
        file.unlink()
    with runs.Checkpoints(good) as c:
        back = c.restore(make_state())
        assert back.step == 1
        assert_same(make_state(1), back.state)
        assert back.extra == {"pending": [{"step": 1}]}
        (message,) = back.set_aside
        assert "Checkpoint 2 is damaged" in message
        assert file.name in message
        assert "damaged-00000002-1" in message
        assert (good / "damaged-00000002-1").is_dir()
        assert (c.latest(), c.good_steps()) == (1, [1])


def test_every_missing_file_and_folder_is_noticed(good, tmp_path):
    path = good / "00000002"
    for number, name in enumerate(
        str(p.relative_to(path)) for p in [*files_of(path), path / "arrays", path / "manifest"]
    ):
        copy = shutil.copytree(good, tmp_path / f"missing{number}")
        target = copy / "00000002" / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        with runs.Checkpoints(copy) as c:
            back = c.restore(make_state())
        assert back.step == 1, name
        # Without its mark a checkpoint is not damaged, it is only not known to be good.
        assert len(back.set_aside) == (0 if name == "good" else 1), name


def test_when_every_good_one_is_damaged_the_error_names_each(good):
    for step in (1, 2):
        os.truncate(good / f"0000000{step}" / "manifest" / "metadata", 5)
    with runs.Checkpoints(good) as c, pytest.raises(RuntimeError) as error:
        c.restore(make_state())
    for text in (
        "Checkpoint 2 is damaged",
        "Checkpoint 1 is damaged",
        "manifest/metadata: 5 bytes",
        "damaged-00000001-1",
    ):
        assert text in str(error.value)


def test_values_that_orbax_gives_back_wrong_are_caught(good, monkeypatch):
    # Files intact, values not: as if the copy in memory had been damaged before it was written.
    manifest = stored.read_json
    wrong = lambda path, item: json.loads(json.dumps(manifest(path, item)).replace('"crc32": "', '"crc32": "f'))  # noqa: E731
    monkeypatch.setattr(stored, "read_json", wrong)
    _, problems = reading.read_arrays(good / "00000002")
    assert any(p.startswith("array params/dense/kernel: crc32") for p in problems)


def test_another_model_is_an_error_that_names_leaves_and_sets_nothing_aside(good):
    like = make_state()
    like["params"]["dense"]["kernel"] = np.zeros((5, 4), np.float32)
    like["extra_layer"] = np.zeros(2)
    with runs.Checkpoints(good) as c:
        with pytest.raises(ValueError, match="params/dense/kernel") as error:
            c.restore(like)
        assert "float32[5, 3] against float32[5, 4]" in str(error.value)
        assert "extra_layer" in str(error.value)
        assert c.good_steps() == [1, 2]
    assert stored.set_aside(good) == []


def test_a_checkpoint_of_another_format_is_no_damage_and_left_alone(good):
    seal = good / "00000002" / stored.SEAL
    body = seal.read_bytes().splitlines(keepends=True)
    text = b"".join(body[:-1])[:-1].replace(b'"format": 1', b'"format": 3')
    seal.write_bytes(text + b"\n" + f"{zlib.crc32(text):08x}".encode() + b"\n")
    before = {p: p.read_bytes() for p in files_of(good)}
    with runs.Checkpoints(good) as c:
        with pytest.raises(ValueError, match=r"00000002 is a checkpoint of format 3; .* reads formats 1 and 2"):
            c.restore(make_state())
    assert {p: p.read_bytes() for p in files_of(good)} == before


def test_nothing_to_restore_says_so(tmp_path):
    with runs.Checkpoints(tmp_path) as c:
        with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
            c.restore({"x": np.ones(1)})
        c.save(4, {"x": np.ones(1)}, {}, wait=True)
        with pytest.raises(FileNotFoundError, match=r"none of \[4\] .* is marked good"):
            c.restore({"x": np.ones(1)})
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 .* Present: \[4\]"):
            c.restore({"x": np.ones(1)}, step=5)
        assert c.restore({"x": np.ones(1)}, step=4).step == 4


@pytest.mark.parametrize(
    ("state", "extra", "error", "text"),
    [
        ({"key": jax.random.key(0)}, {}, TypeError, "leaf 'key' is key<fry>"),
        ({"x": np.array([None])}, {}, TypeError, "leaf 'x' is object"),
        ({"x": 1.0}, {}, TypeError, "leaf 'x' is float"),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, {}, ValueError, "same path"),
        ({"x": np.ones(1)}, {"best": np.float32(1)}, TypeError, r"extra\['best'\] is float32"),
        ({"x": np.ones(1)}, {"rows": [{3: 1}]}, TypeError, r"extra\['rows'\]\[0\] has the key 3"),
    ],
)
def test_what_cannot_be_saved_exactly_is_refused_at_the_call(tmp_path, state, extra, error, text):
    with runs.Checkpoints(tmp_path) as c, pytest.raises(error, match=text):
        c.save(1, state, extra)
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep >= 1"):
        runs.Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="'min', 'max'"):
        runs.Checkpoints(tmp_path, keep_best="lowest")
    with runs.Checkpoints(tmp_path) as c, pytest.raises(ValueError, match="step -1"):
        c.save(-1, {"x": np.ones(1)}, {})
