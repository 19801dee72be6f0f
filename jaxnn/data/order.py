"""The order of examples as arithmetic: what a data step sees is a function of (seed, data_step, global batch).

There is no iterator, so there is no iterator state to save, and any step can be asked for on its own: resuming,
rewinding and several hosts all read the same order. An epoch is a keyed bijection of [0, n), evaluated only at the
positions that are asked for, in integer arithmetic of fixed width, so that no version of NumPy and no machine changes
it.
"""

import math
from numbers import Integral, Real

import numpy as np

from jaxnn.typing import HostArray

MAX_EXAMPLES = 2**40
# Chi-square over the 40,000 first keys, of all permutations up to n = 6 and of the images of pairs above: 16 rounds
# show nothing at any n, 8 nothing above n = 16 or so, 6 nothing above about 50.
_SMALL = 64
_ROUNDS, _ROUNDS_SMALL = 8, 16
_GOLDEN = 0x9E3779B97F4A7C15


def _check(name: str, **values: int) -> None:
    for what, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"order.{name}: {what} is {value!r} of type {type(value).__name__}. Give an integer.")


def _check_sizes(name: str, n: int, batch_size: int) -> None:
    _check(name, n=n, batch_size=batch_size)
    if not 0 < n <= MAX_EXAMPLES:
        raise ValueError(f"order.{name}: n is {n} examples. Give 1 to 2**40.")
    if batch_size <= 0:
        raise ValueError(f"order.{name}: batch_size is {batch_size}. Give at least 1 example a step.")


def splitmix(x: HostArray) -> HostArray:
    """The output function of splitmix64 on uint64 [...]: a bijection whose every output bit depends on every input bit.

    Source:
        Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", constants of Stafford's mix 13.
    """
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _as_words(x: object) -> HostArray:
    """Integers of any sign as uint64 of rank 1 or more: NumPy warns when a scalar wraps, not when an array does."""
    if isinstance(x, Integral):
        x = np.uint64(int(x) % 2**64)
    return np.atleast_1d(np.asarray(x)).astype(np.uint64)


def fold(seed: int, *values: object) -> HostArray:
    """A 64-bit key from a seed and further integers (scalars or arrays that broadcast): uint64, rank 1 or more."""
    key = splitmix(_as_words(seed))
    for value in values:
        key = splitmix(key ^ splitmix(_as_words(value)))
    return key


def words(seed: int, step: int, index: HostArray) -> HostArray:
    """Two random words per example for host-side augmentation, a function of (seed, step, index) alone.

    Args:
        seed: Any integer.
        step: The data step.
        index: Global example ids [B].

    Returns:
        uint32 [B, 2].
    """
    key = fold(seed, step, index)
    return np.stack([(key >> np.uint64(32)).astype(np.uint32), key.astype(np.uint32)], axis=-1)


def _walk_once(index: HostArray, rows: int, columns: int, keys: HostArray, dtype: type) -> HostArray:
    """One pass of the network over [0, rows * columns): `index` and a round's `keys[i]` broadcast; gives `dtype`."""
    shape = np.broadcast_shapes(index.shape, keys.shape[1:])
    start = index // dtype(columns)
    high, low = np.empty(shape, np.uint32), np.empty(shape, np.uint32)
    np.copyto(high, start, casting="unsafe")
    np.copyto(low, index - start * dtype(columns), casting="unsafe")
    sides = [(high, low, rows), (low, high, columns)]
    x, wide = np.empty(shape, np.uint32), np.empty(shape, dtype)
    for i, key in enumerate(keys):
        left, right, modulus = sides[i % 2]
        # Two multiplications and a shift of MurmurHash3's finaliser; only the high bits are used, which they mix best.
        np.bitwise_xor(right, key, out=x)
        np.multiply(x, np.uint32(0x85EBCA6B), out=x)
        np.right_shift(x, np.uint32(15), out=wide, casting="unsafe")
        np.bitwise_xor(x, wide, out=x, casting="unsafe")
        np.multiply(x, np.uint32(0xC2B2AE35), out=x)
        # A number in [0, modulus) by a product's high half; 16 bits suffice, and stay in 32, while modulus <= 2**12.
        bits = 16 if dtype is np.uint32 else 32
        np.right_shift(x, np.uint32(32 - bits), out=x)
        np.multiply(x, dtype(modulus), out=wide)
        np.right_shift(wide, dtype(bits), out=wide)
        np.add(left, wide, out=left, casting="unsafe")
        # left - modulus wraps to a huge number where left < modulus: the smaller one is left mod modulus.
        np.subtract(left, np.uint32(modulus), out=x)
        np.minimum(left, x, out=left)
    place = high.astype(dtype, copy=False)
    place *= dtype(columns)
    place += low
    return place


def permute(index: HostArray, n: int, key: object) -> HostArray:
    """The places of `index` under a keyed permutation of [0, n); costs O(len(index)), not O(n).

    A Feistel network over Z_rows x Z_columns with rows * columns >= n and as close to n as the square root allows,
    walking on while a value falls outside [0, n). Over the next power of four up to three quarters of the values would
    fall outside, and each walk is another pass.

    Args:
        index: Integers in [0, n), any shape.
        n: Size of the domain, 1 to 2**40.
        key: uint64 integer, or an array of them that broadcasts to `index`: a permutation for each.

    Returns:
        int64, the shape of `index`.

    Raises:
        ValueError: If `n` is out of range or an index is not in [0, n).

    Source:
        Black and Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2 (cycle walking) and 3 (generalised
        Feistel).
    """
    _check_sizes("permute", n, 1)
    index = np.asarray(index)
    if index.size and (int(index.min()) < 0 or int(index.max()) >= n):
        raise ValueError(f"order.permute: index in [{index.min()}, {index.max()}] for n = {n}. Give indices in [0, n).")
    return _permuted(index, n, _round_keys(_as_words(key), n)).reshape(index.shape).astype(np.int64)


def _round_keys(key: HostArray, n: int) -> HostArray:
    """The network's keys, a round after the other: uint32 [rounds, *key.shape]."""
    rounds = np.arange(_ROUNDS_SMALL if n <= _SMALL else _ROUNDS, dtype=np.uint64)
    return (splitmix(key + rounds.reshape(-1, *[1] * key.ndim)) >> np.uint64(32)).astype(np.uint32)


def _permuted(index: HostArray, n: int, keys: HostArray) -> HostArray:
    """`permute` of valid indices, from the keys of its rounds, with which they broadcast: unsigned, rank 1 or more."""
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    dtype = np.uint32 if rows <= 2**12 else np.uint64
    index = np.atleast_1d(index)
    if n == 1 or not index.size:
        return np.zeros(np.broadcast_shapes(index.shape, keys.shape[1:]), dtype)
    place = _walk_once(index.astype(dtype), rows, columns, keys, dtype)
    flat = place.reshape(-1)
    outside = np.nonzero(flat >= n)[0] if rows * columns > n else np.zeros(0, np.int64)
    if outside.size and keys[0].size > 1:
        places = (slice(None), *np.unravel_index(outside, place.shape))
        keys = np.broadcast_to(keys, (len(keys), *place.shape))[places]
    else:
        keys = keys.reshape(len(keys), -1)
    while outside.size:
        flat[outside] = again = _walk_once(flat[outside], rows, columns, keys, dtype)
        still = again >= n
        outside, keys = outside[still], keys[:, still] if keys.shape[1] > 1 else keys
    return place


def split(where: str, what: str, n: int, fraction: float, seed: int) -> tuple[HostArray, HostArray]:
    """Two disjoint parts of [0, n), together all of it, drawn at random, each ascending: int64 [m], [n - m].

    Args:
        where: Who asks.
        what: What is numbered, "examples".
        n: How many there are.
        fraction: Share of the first part, in (0, 1).
        seed: The parts are a function of it and of `n`.

    Raises:
        ValueError: If a part would be empty.
    """
    count = round(n * fraction) if isinstance(fraction, Real) and math.isfinite(fraction) else 0
    if not 0 < count < n:
        raise ValueError(
            f"{where}: fraction {fraction!r} of {n} {what} gives {count} and {n - count}. Tried: at least one on each "
            "side. Give a share such as 0.8."
        )
    places = permute(np.arange(n), n, fold(seed))
    return np.sort(places[:count]), np.sort(places[count:])


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Data steps that show each of `n` examples once, the last one ragged where `batch_size` does not divide `n`."""
    _check_sizes("steps_per_epoch", n, batch_size)
    return -(-n // batch_size)


def examples(seed: int, data_step: int, count: int, *, n: int, batch_size: int, shuffle: bool = True) -> HostArray:
    """The global example ids of the data steps `data_step` to `data_step + count - 1`.

    Epoch e has `steps_per_epoch` steps and its own permutation, with a key from (seed, e).

    Args:
        seed: Any integer.
        data_step: First step, 0 or more.
        count: Number of steps, 0 or more.
        n: Examples in the data set.
        batch_size: Examples in a global batch.
        shuffle: False keeps the order of the source in every epoch.

    Returns:
        int64 [count, batch_size]; -1 pads the end of an epoch's last batch.

    Raises:
        ValueError: If a size is not positive, or a step or the count is negative.
    """
    _check_sizes("examples", n, batch_size)
    _check("examples", seed=seed, data_step=data_step, count=count)
    if data_step < 0 or count < 0:
        raise ValueError(
            f"order.examples: data_step {data_step} and count {count}. Give numbers that are not negative."
        )
    if not count:
        return np.zeros((0, batch_size), np.int64)
    per_epoch = -(-n // batch_size)
    first, last = data_step // per_epoch, (data_step + count - 1) // per_epoch
    epochs = np.arange(first, last + 1)
    keys = _round_keys(fold(seed, epochs), n) if shuffle else None
    if last > first and 8 * len(epochs) * per_epoch <= 9 * count:
        ids = _whole_epochs(keys, len(epochs), n)
        if n % batch_size:
            ids = np.pad(ids, ((0, 0), (0, per_epoch * batch_size - n)), constant_values=-1)
        begin = data_step - first * per_epoch
        return ids.reshape(-1, batch_size)[begin : begin + count]
    steps = np.arange(data_step, data_step + count, dtype=np.int64)
    epoch, within = np.divmod(steps, per_epoch) if last > first else (None, steps - first * per_epoch)
    ids = (within * batch_size)[:, None] + np.arange(batch_size, dtype=np.int64)
    padding = ids >= n if n % batch_size else None
    if padding is not None:
        ids[padding] = 0
    if keys is not None:
        # One key serves all rows of one epoch: one a row costs a broadcast in each round.
        keys = keys if epoch is None else np.repeat(keys, np.bincount(epoch - first), axis=1)
        ids = _permuted(ids, n, keys[:, :, None]).astype(np.int64)
    if padding is not None:
        ids[padding] = -1
    return ids


def _whole_epochs(keys: HostArray | None, epochs: int, n: int) -> HostArray:
    """The order of whole epochs from their keys [rounds, epochs], None for the source's order: int64 [epochs, n].

    For small data nothing is done an example but the network's rounds, which share a key over an epoch.
    """
    place = np.arange(n)
    if keys is None:
        return np.tile(place, (epochs, 1))
    if epochs > n:  # NumPy is fast along the last axis where it is long
        return _permuted(place[:, None], n, keys[:, None, :]).T.astype(np.int64, order="C")
    return _permuted(place, n, keys[:, :, None]).astype(np.int64)
