import itertools
import zlib

import numpy as np
import pytest
from scipy import stats

from jaxnn.data import order

GOLDEN_PERMUTE_10 = [0, 1, 3, 7, 2, 6, 5, 8, 9, 4]
GOLDEN_PERMUTE_LARGE = [551717085167, 702832280525, 308468327353, 366361513302]
GOLDEN_EXAMPLES = [[7, 0, 5, 3], [8, 2, 4, 1], [6, 9, -1, -1]]
GOLDEN_LATE = [[38606, 31666, 9537, 14007, 20826, 26902]]
GOLDEN_WORDS = [[24633714, 1254414070], [1921610691, 3076231177]]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 100, 1000, 4097, 2**16 - 1, 2**16 + 1])
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_permute_is_a_bijection(n, key):
    assert np.array_equal(np.sort(order.permute(np.arange(n), n, key)), np.arange(n))


@pytest.mark.parametrize("n", [2**20 + 1, 2**24 + 1, 2**32 + 5, 2**40])
def test_permute_of_a_large_domain_keeps_indices_apart(n):
    index = np.unique(
        np.concatenate([np.arange(20_000), n - 1 - np.arange(20_000), np.linspace(0, n - 1, 20_000, dtype=np.int64)])
    )
    places = order.permute(index, n, 7)
    assert places.min() >= 0
    assert places.max() < n
    assert len(np.unique(places)) == len(index)
    # Uniform over the domain: a permutation that stayed near its argument would fail.
    assert stats.kstest(places / n, "uniform").pvalue > 1e-3


def test_permute_does_not_depend_on_the_company():
    index = np.arange(1000).reshape(10, 100)
    whole = order.permute(index, 1000, 5)
    assert np.array_equal(whole[:, ::-1], order.permute(index[:, ::-1], 1000, 5))
    assert np.array_equal(whole.T, order.permute(index.T, 1000, 5))
    assert whole[3, 4] == order.permute(np.array(304), 1000, 5)
    keys = np.array([[5], [6]], np.uint64)
    both = order.permute(np.broadcast_to(np.arange(1000), (2, 1000)), 1000, keys)
    assert np.array_equal(both[0], whole.reshape(-1))
    assert np.array_equal(both[1], order.permute(np.arange(1000), 1000, 6))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_permutation_of_few_is_equally_likely(n):
    trials = 12_000
    places = order.permute(np.broadcast_to(np.arange(n), (trials, n)), n, order.fold(11, np.arange(trials))[:, None])
    seen = {tuple(p): 0 for p in itertools.permutations(range(n))}
    for place in places.tolist():
        seen[tuple(place)] += 1
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("n", [17, 65, 100])
def test_two_positions_are_jointly_uniform(n):
    trials = 40_000
    for pair in ((0, 1), (2, n - 1)):
        places = order.permute(np.broadcast_to(pair, (trials, 2)), n, order.fold(3, np.arange(trials))[:, None])
        counts = np.bincount(places[:, 0] * n + places[:, 1], minlength=n * n).reshape(n, n)
        assert np.trace(counts) == 0
        assert stats.chisquare(counts[~np.eye(n, dtype=bool)]).pvalue > 1e-3


def test_the_order_is_frozen():
    """A change of these numbers changes the order of every run that was ever started."""
    assert order.permute(np.arange(10), 10, 1).tolist() == GOLDEN_PERMUTE_10
    assert order.permute(np.array([0, 1, 2**33, 2**40 - 1]), 2**40, 2**63 + 5).tolist() == GOLDEN_PERMUTE_LARGE
    assert order.examples(0, 0, 3, n=10, batch_size=4).tolist() == GOLDEN_EXAMPLES
    assert order.examples(-3, 100_000, 1, n=60_000, batch_size=6).tolist() == GOLDEN_LATE
    assert order.words(1, 2, np.array([3, 4])).tolist() == GOLDEN_WORDS
    assert order.fold(0).tolist() == [0xE220A8397B1DCDAF]  # splitmix64's first output from state 0


@pytest.mark.parametrize(
    ("n", "batch_size", "data_step", "count", "checksum"),
    [
        (100, 1, 0, 700, 2581023903),
        (100, 1, 37, 450, 2564767216),
        (7, 1, 3, 400, 3957780388),
        (65, 7, 9, 100, 3582670372),
        (1000, 32, 31, 2000, 3666254176),
        (1000, 32, 31, 3, 3143193892),
        (4097, 3, 1365, 1400, 3842792670),
        (16777217, 2, 8388608, 5, 2468167190),
        (1099511627776, 5, 68719476736, 4, 3152444505),
    ],
)
def test_the_order_is_frozen_however_it_is_drawn(n, batch_size, data_step, count, checksum):
    """Whole epochs, parts, more epochs than examples, walks, wide domains: as the first version drew them."""
    ids = order.examples(11, data_step, count, n=n, batch_size=batch_size)
    assert ids.shape == (count, batch_size)
    assert zlib.crc32(ids.astype("<i8").tobytes()) == checksum


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (8, 4), (7, 7), (3, 5), (1, 1), (1, 4), (257, 32)])
def test_every_epoch_shows_every_example_once_and_pads_at_its_end(n, batch_size):
    per_epoch = order.steps_per_epoch(n, batch_size)
    assert per_epoch == -(-n // batch_size)
    ids = order.examples(0, 0, 3 * per_epoch, n=n, batch_size=batch_size)
    assert ids.dtype == np.int64
    assert ids.shape == (3 * per_epoch, batch_size)
    epochs = ids.reshape(3, -1)
    assert (epochs[:, n:] == -1).all()
    assert np.array_equal(np.sort(epochs[:, :n]), np.broadcast_to(np.arange(n), (3, n)))
    if n > 5:
        assert len({tuple(e) for e in epochs.tolist()}) == 3


def test_the_order_does_not_depend_on_how_steps_are_grouped():
    whole = order.examples(5, 0, 40, n=101, batch_size=16)
    for cuts in ([0, 1, 2, 40], [0, 7, 14, 21, 40], list(range(41))):
        parts = [order.examples(5, a, b - a, n=101, batch_size=16) for a, b in itertools.pairwise(cuts)]
        assert np.array_equal(whole, np.concatenate(parts))
    assert order.examples(5, 3, 0, n=101, batch_size=16).shape == (0, 16)


def test_seed_and_shuffle():
    first, second = (order.examples(s, 0, 4, n=100, batch_size=25) for s in (0, 1))
    assert not np.array_equal(first, second)
    plain = order.examples(0, 3, 3, n=10, batch_size=4, shuffle=False)
    assert plain.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]


def test_words_are_a_function_of_seed_step_and_example():
    index = np.arange(50)
    words = order.words(1, 2, index)
    assert words.dtype == np.uint32
    assert np.array_equal(words[::-1], order.words(1, 2, index[::-1]))
    for other in (order.words(2, 2, index), order.words(1, 3, index), order.words(1, 2, index + 1)):
        assert not (words == other).any()
    assert stats.kstest(order.words(0, 0, np.arange(5000)).reshape(-1) / 2**32, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: order.examples(0, 0, 1, n=0, batch_size=4), ValueError, "order.examples: n is 0 examples"),
        (lambda: order.examples(0, 0, 1, n=2**41, batch_size=4), ValueError, "Give 1 to 2\\*\\*40"),
        (lambda: order.examples(0, 0, 1, n=4, batch_size=0), ValueError, "order.examples: batch_size is 0"),
        (lambda: order.examples(0, -1, 1, n=4, batch_size=2), ValueError, "data_step -1 and count 1"),
        (lambda: order.examples(0, 0, -2, n=4, batch_size=2), ValueError, "data_step 0 and count -2"),
        (lambda: order.examples(0.5, 0, 1, n=4, batch_size=2), TypeError, "seed is 0.5 of type float"),
        (lambda: order.steps_per_epoch(4, 2.0), TypeError, "batch_size is 2.0 of type float"),
        (lambda: order.steps_per_epoch(-1, 2), ValueError, "order.steps_per_epoch: n is -1"),
        (lambda: order.permute(np.arange(5), 4, 0), ValueError, r"index in \[0, 4\] for n = 4"),
        (lambda: order.permute(np.array([-1]), 4, 0), ValueError, r"index in \[-1, -1\] for n = 4"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call()
