"""What an optimizer remembers, in fewer bytes: bfloat16 or eight bits, chosen by name, for any optimizer."""

import dataclasses
import difflib
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn.optim.compose import layers, select
from jaxnn.optim.compose.hyper_access import short_path
from jaxnn.optim.compose.places import Place, places
from jaxnn.optim.compose.quantize import SMALLEST, Quantized, dequantize, quantize
from jaxnn.optim.compose.rounding import dither, hash_bits, round_stochastically
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Blockwise:
    """Storage in eight bits an element and a byte for each block of 32; see `jaxnn.optim.compose.quantize`.

    Attributes:
        signed: Whether the values may be negative; None goes by name: `nu`, `nu_max`, `v` and `sum_of_squares` are
            squares.
    """

    signed: bool | None = None

    def __repr__(self) -> str:
        return "q8" if self.signed is None else f"q8({'signed' if self.signed else 'unsigned'})"


q8 = Blockwise()
_SQUARES = ("nu", "nu_max", "v", "sum_of_squares")
Storage = Any  # a floating dtype, or a Blockwise


class StoredState(NamedTuple):
    """State of `with_state_dtype`.

    Attributes:
        count: int32 scalar, updates done: the random bits of rounding depend on it.
        inner: The wrapped optimizer's state, in the chosen storage: leaves in eight bits are `Quantized`.
    """

    count: Array
    inner: PyTree


def with_state_dtype(
    tx: optax.GradientTransformation,
    dtypes: Storage | Mapping[str, Storage],
    *,
    rounding: Literal["stochastic", "nearest"] = "stochastic",
) -> Transformation:
    """Stores an optimizer's state in fewer bytes; it still computes in float32.

    AdamW takes 8 bytes a parameter in float32, 4 in bfloat16 and 2.06 in `q8`. Hyperparameters, counters, complex
    leaves and scalars stay as they are; in `q8` leaves of fewer than 64 elements too.

    Args:
        tx: Any optimizer.
        dtypes: One storage for all of its state, or name -> storage: `{"mu": jnp.bfloat16, "nu": optim.q8}`. A name is
            a part of the path that `optim.get` takes: "mu", "adam.mu", or "precondition.muon" for all that is there.
        rounding: "stochastic" is right in expectation, in `q8` on average over a few steps already (`dither`). Its bits
            are those of a layer, in a model's loop as in its scan; in `q8`, whose blocks do not end where layers do,
            they are the array's. To "nearest", an average that moves by less than half a spacing a step stands still:
            in bfloat16 a second moment of decay rate 0.999 never falls.

    Raises:
        TypeError: If a storage is no floating dtype and no `Blockwise`.
        ValueError: If `rounding` is unknown, or "stochastic" where a storage has none (float16, float8); at init, if a
            name matches nothing.

    Source:
        Dettmers et al. 2022, arXiv:2110.02861; Zamirai et al. 2020, arXiv:2010.06192.
    """
    where = "optim.with_state_dtype"
    inner = inner_of(where, tx)
    if rounding not in ("stochastic", "nearest"):
        raise ValueError(f'{where}: rounding is {rounding!r}. Give "stochastic" or "nearest".')
    chosen = {name: _check_storage(where, name, value) for name, value in _by_name(dtypes).items()}
    if rounding == "stochastic":
        _check_rounded(where, chosen)

    def init(params: PyTree) -> StoredState:
        state = inner.init(params)
        found = [(place, _storage(place, chosen)) for place in places(state, params)]
        _check_names(where, chosen, [place for place, _ in found])
        leaves = [_first(place, storage) for place, storage in found]
        return StoredState(jnp.zeros((), jnp.int32), jax.tree.unflatten(jax.tree.structure(state), leaves))

    def update(
        updates: PyTree, state: StoredState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, StoredState]:
        updates, new = apply_part(inner, updates, decoded(state.inner), params, context or Context(), extra)
        stored, treedef = jax.tree.flatten(state.inner, is_leaf=_is_quantized)
        seeds: Iterable[Any] = itertools.repeat(None)
        if rounding == "stochastic":
            seeds = _seeds(state.count, new, updates if params is None else params)
        leaves = [_encode(x, old, seed) for x, old, seed in zip(jax.tree.leaves(new), stored, seeds)]
        return updates, StoredState(state.count + 1, jax.tree.unflatten(treedef, leaves))

    return wrap("with_state_dtype", inner, init, update, facts={"draws": True} if rounding == "stochastic" else {})


def decoded(state: PyTree) -> PyTree:
    """A state whose leaves in eight bits or bfloat16 are float32 arrays."""

    def one(x: Any) -> Any:
        if isinstance(x, Quantized):
            return dequantize(x)
        return x.astype(jnp.float32) if _small_float(x) else x

    return jax.tree.map(one, state, is_leaf=_is_quantized)


def encoded(x: Array, like: Any) -> Any:
    """`x` in the storage of `like`, rounded to nearest."""
    return _encode(x, like, None)


def _is_quantized(x: Any) -> bool:
    return isinstance(x, Quantized)


def _small_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and jnp.dtype(x.dtype).itemsize < 4


class _Seed(NamedTuple):
    """What the random bits of one leaf go by.

    Attributes:
        count: Updates done.
        place: The leaf's number in the state.
        word: Of what it is to its parameter and of each of that one's layers, uint32: the same in every layout.
    """

    count: Array
    place: int
    word: np.ndarray


def _seeds(count: Array, state: PyTree, params: PyTree) -> Iterator[_Seed]:
    known = jax.tree.leaves(select.leaves(params))
    numbers = dict(zip((leaf.path for leaf in known), layers.numbers(known), strict=True))
    for number, place in enumerate(places(state, params)):
        what = "/".join((place.stage, place.group, place.owner, place.inside, place.rest))
        of = numbers.get(place.param or "")
        if of is None or np.shape(place.leaf)[: of.ndim] != of.shape:  # of no parameter, or of no layers
            of = np.asarray(zlib.crc32((place.param or "").encode()), np.uint32)
        yield _Seed(count, number, of ^ np.uint32(zlib.crc32(what.encode())))


def _encode(x: Array, like: Any, seed: _Seed | None) -> Any:
    if isinstance(like, Quantized):
        # By place: blocks do not end where layers do.
        bits = None if seed is None else dither(like.codes.shape, seed.count, seed.place)
        return quantize(x, bits, signed=like.signed)
    if seed is not None and like.dtype == jnp.bfloat16 and x.dtype == jnp.float32:
        return round_stochastically(x, hash_bits(x.shape, seed.count, seed.word))
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return x
    return jax.lax.convert_element_type(x, like.dtype)


def _first(place: Place, storage: Storage | None) -> Any:
    """A leaf of the first state in its storage."""
    x = place.leaf
    if storage is None:
        return x
    if isinstance(storage, Blockwise):
        name = _names(place)[-1] if _names(place) else ""
        signed = storage.signed if storage.signed is not None else name not in _SQUARES
        return quantize(x, signed=signed) if x.size >= SMALLEST else x
    return x.astype(storage)


def _by_name(dtypes: Any) -> dict[str, Any]:
    return dict(dtypes) if isinstance(dtypes, Mapping) else {"": dtypes}


def _check_storage(where: str, name: str, storage: Any) -> Storage:
    if isinstance(storage, Blockwise):
        return storage
    try:
        dtype = np.dtype(storage)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        shown = f" of {name!r}" if name else ""
        raise TypeError(f"{where}: the storage{shown} is {storage!r:.60}. Give a floating dtype or optim.q8.")
    return dtype


def _check_rounded(where: str, chosen: Mapping[str, Storage]) -> None:
    for storage in chosen.values():
        if not isinstance(storage, Blockwise) and storage.itemsize < 4 and storage != jnp.bfloat16:
            raise ValueError(
                f"{where}: {storage} is rounded to nearest only, where a slow average stands still. Give jnp.bfloat16 "
                'or optim.q8, or say rounding="nearest".'
            )


def _names(place: Place) -> list[str]:
    """A leaf's path as `optim.get` takes it, without the parameter's."""
    end = f"/{place.param}" + (f"/{place.rest}" if place.rest else "")
    path = place.path.removesuffix(end) if place.param not in (None, ".") else place.path
    return short_path(path).split(".")


def _can(place: Place) -> bool:
    """Whether a leaf is an array of moments or the like, rather than a counter, a key or a scalar."""
    return not place.scalar and np.ndim(place.leaf) > 0 and jnp.issubdtype(place.leaf.dtype, jnp.floating)


def _matches(name: str, place: Place) -> bool:
    wanted, names = name.replace("/", ".").split("."), _names(place)
    return any(names[i : i + len(wanted)] == wanted for i in range(len(names)))


def _storage(place: Place, chosen: Mapping[str, Storage]) -> Storage | None:
    """The storage of the most precise name that matches a leaf."""
    if not _can(place):
        return None
    hits = [name for name in chosen if name == "" or _matches(name, place)]
    return chosen[max(hits, key=len)] if hits else None


def _check_names(where: str, chosen: Mapping[str, Storage], found: list[Place]) -> None:
    for name in chosen:
        if name and not any(_can(place) and _matches(name, place) for place in found):
            known = sorted({".".join(_names(place)) for place in found if _can(place)})
            close = difflib.get_close_matches(name, {k.rsplit(".", 1)[-1] for k in known} | set(known), 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{where}: nothing in the state is called {name!r}. There are {known}.{hint}")
