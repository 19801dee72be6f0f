import functools
import itertools
import threading
import time
import traceback

import jax
import numpy as np
import pytest

from jaxnn.data import Arrays, Loader, host_batch, loader, mapped, order, process_slice

SOURCE = Arrays(np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10))
IDS = functools.partial(order.examples, 0, n=10, batch_size=4)


def load(source=SOURCE, ids=IDS, place=lambda b: b, **kwargs):
    return Loader(source, ids, place, **{"start": 0, "stop": 6, **kwargs})


def test_host_batch_masks_padding():
    batch = host_batch(SOURCE, np.array([3, 9, -1, -1]))
    assert batch["mask"].tolist() == [1, 1, 0, 0]
    assert batch["mask"].dtype == np.float32
    assert batch["index"].tolist() == [3, 9, 0, 0]
    assert batch["index"].dtype == np.int32
    assert batch["y"].tolist() == [3, 9, 0, 0]
    assert host_batch(SOURCE, np.array([-1, -1]))["mask"].sum() == 0


def test_batches_are_those_of_the_order():
    with load(start=2, stop=140) as batches:
        seen = dict(batches)
    assert list(seen) == list(range(2, 140))
    for step, batch in seen.items():
        (ids,) = IDS(step, 1)
        expected = host_batch(SOURCE, ids, step)
        assert all(np.array_equal(batch[k], expected[k]) for k in expected)


def test_processes_read_their_rows_of_the_global_batch():
    with (
        load() as whole,
        load(process_index=0, process_count=2) as first,
        load(process_index=1, process_count=2) as last,
    ):
        for (_, batch), (_, a), (_, b) in zip(whole, first, last, strict=True):
            for name in batch:
                assert np.array_equal(batch[name], np.concatenate([a[name], b[name]]))


def test_placing_happens_in_the_thread_and_no_buffer_is_reused():
    threads, kept = set(), []

    def place(batch):
        threads.add(threading.current_thread().name)
        kept.append(batch)
        return jax.device_put(batch)

    with load(place=place) as batches:
        placed = [jax.device_get(b) for _, b in batches]
    assert threads == {"jaxnn-loader"}
    for i, a in enumerate(kept):
        assert np.array_equal(a["x"], placed[i]["x"])
        for b in kept[:i]:
            assert not any(np.shares_memory(a[k], b[k]) for k in a)


def test_the_thread_stays_at_most_depth_ahead():
    made = []
    with load(place=lambda b: made.append(b) or b, depth=3, stop=50) as batches:
        next(batches)
        deadline = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert len(made) == 4  # one taken and three ready


def test_waiting_is_measured():
    release = threading.Event()

    def place(batch):
        release.wait(10)
        return batch

    with load(place=place) as batches:
        threading.Timer(0.1, release.set).start()
        next(batches)
        assert 0.05 < batches.wait_s < 9


def test_an_exception_arrives_with_its_traceback_after_the_batches_before_it():
    class Broken(Exception):
        pass

    count = itertools.count()

    def place_the_third(batch):
        if next(count) == 2:
            raise Broken("disk on fire")
        return batch

    batches = load(place=place_the_third)
    assert [next(batches)[0], next(batches)[0]] == [0, 1]
    with pytest.raises(Broken, match="disk on fire") as raised:
        next(batches)
    assert "place_the_third" in "".join(traceback.format_tb(raised.value.__traceback__))
    with pytest.raises(Broken):
        next(batches)
    batches.close()
    assert not batches._thread.is_alive()


@pytest.mark.parametrize("taken", [0, 1, 6])
def test_close_joins_the_thread(taken):
    batches = load()
    for _ in range(taken):
        next(batches)
    batches.close()
    batches.close()
    assert not batches._thread.is_alive()
    assert list(batches) == []


def test_close_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(loader, "_JOIN_S", 0.05)
    entered, release = threading.Event(), threading.Event()
    batches = load(place=lambda b: (entered.set(), release.wait(10)))
    assert entered.wait(10)
    with pytest.warns(RuntimeWarning, match="data.Loader: the thread has not come back"):
        batches.close()
    release.set()
    batches._thread.join(10)


def test_random_transforms_see_the_data_step():
    source = mapped(SOURCE, lambda e, words: {**e, "noise": words[:, 0]}, random=True)
    with load(source) as batches:
        seen = dict(batches)
    for step in (0, 5):
        assert np.array_equal(seen[step]["noise"], order.words(0, step, seen[step]["index"])[:, 0])


def test_an_empty_range_ends_at_once():
    with load(start=3, stop=3) as batches:
        assert list(batches) == []


class Short(Arrays):
    def take(self, index):
        return {"x": np.zeros(3)}


class Reserved(Arrays):
    def take(self, index):
        return {"mask": np.zeros(len(index))}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: host_batch(SOURCE, np.array([10])), r"ids from 10 to 10 for 10 examples"),
        (lambda: host_batch(SOURCE, np.array([-2])), r"ids from -2 to -2"),
        (lambda: host_batch(SOURCE, np.zeros((2, 2), int)), r"ids int64\[2, 2\]"),
        (lambda: host_batch(SOURCE, np.array([0.0])), r"ids float64\[1\]"),
        (lambda: host_batch(Short(np.ones(9)), np.array([0, 1])), r"Short.take gave 'x' float64\[3\] for 2 ids"),
        (lambda: host_batch(Reserved(np.ones(9)), np.array([0, 1])), "Reserved.take gives the reserved name 'mask'"),
        (lambda: process_slice(np.arange(6), 0, 4), "a global batch of 6 examples over 4 processes"),
        (lambda: process_slice(np.arange(6), 2, 2), "process 2 of 2"),
        (lambda: load(depth=0), "depth is 0"),
        (lambda: load(start=4, stop=3), r"data steps \[4, 3\)"),
        (lambda: load(process_index=-1), "process -1 of 1"),
        (lambda: next(load(process_count=3)), "a global batch of 4 examples over 3 processes"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ValueError, match=text):
        call()
