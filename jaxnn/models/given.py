"""Checks of what models are given: arrays, numbers of a config, a key to drop out by, parameters of their own."""

import contextlib
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp
from flax import errors, linen as nn

from jaxnn.tree import describe
from jaxnn.typing import Array

_OTHERS = (  # what flax raises where parameters are not the module's
    errors.ScopeCollectionNotFound,
    errors.ScopeParamNotFoundError,
    errors.ScopeParamShapeError,
    errors.ApplyScopeInvalidVariablesStructureError,
    errors.ApplyScopeInvalidVariablesTypeError,
)


def check_array(where: str, name: str, x: Any, form: str) -> None:
    """Refuses what is no array: a list, a text.

    Args:
        where: The model.
        name: Of `x`, in the error.
        x: Anything.
        form: Its axes, "[B, T]".

    Raises:
        TypeError: If it has no shape and dtype.
    """
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise TypeError(
            f"models.{where}: {name} is {describe(x)}, no array. Tried: {form}. Write jnp.asarray({name}); encode a "
            "text first."
        )


def check_positions(where: str, position: Any, tokens: Any) -> None:
    """Refuses positions that are not one a token.

    Raises:
        TypeError: If they are no array.
        ValueError: If they are no integers, or are neither [B, T] nor [T].
    """
    check_array(where, "position", position, "[B, T]")
    if tuple(position.shape) not in (tokens.shape, tokens.shape[1:]) or not jnp.issubdtype(position.dtype, jnp.integer):
        raise ValueError(
            f"models.{where}: position is {describe(position)}. Tried: {list(tokens.shape)}, integers. Write one "
            "for each token, counted from 0."
        )


def check_config(where: str, config: Any, kind: type) -> None:
    """Refuses a config of another kind.

    Raises:
        TypeError: Naming both.
    """
    if not isinstance(config, kind):
        raise TypeError(
            f"models.{where}: config is {type(config).__name__}. Tried: {kind.__name__}. Write "
            f"models.{where}(models.{kind.__name__}(...))."
        )


def check_sizes(where: str, sizes: Mapping[str, Any], least: int = 1) -> None:
    """Refuses sizes that are no integers, or below the least, by name; a value may be a number or several.

    Raises:
        ValueError: Names the first.
    """
    for name, value in sizes.items():
        given = value if isinstance(value, tuple) else (value,)
        if not given or not all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= least for n in given):
            raise ValueError(
                f"models.{where}: {name}={value!r}. Tried: integers of at least {least}. Write such sizes."
            )


def check_rate(where: str, name: str, value: Any) -> None:
    """Refuses what is no rate in [0, 1).

    Raises:
        ValueError: Naming it.
    """
    if not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ValueError(f"models.{where}: {name}={value!r}. Tried: a rate in [0, 1). Write 0.1, say.")


def check_width(where: str, module: nn.Module, layer: str, x: Array) -> None:
    """Refuses an input [..., E] of another width than the parameters of the module's first layer are for.

    Raises:
        ValueError: Naming both.
    """
    kernel = module.variables.get("params", {}).get(layer, {}).get("kernel")
    if kernel is not None and kernel.shape[-2] != x.shape[-1]:
        raise ValueError(
            f"models.{where}: x is {describe(x)} for parameters of {kernel.shape[-2]} inputs. Tried: as many as they "
            f"were made for. Give such arrays, or init the model for these."
        )


def dropout_key(where: str, module: nn.Module) -> Array:
    """The key to drop out by.

    Raises:
        ValueError: If `apply` was given none.
    """
    if not module.has_rng("dropout"):
        raise ValueError(
            f'models.{where}: train=True without a key. Tried: dropout. Write rngs={{"dropout": jax.random.key(0)}}, '
            "or train=False; in `fit` there is one."
        )
    return module.make_rng("dropout")


@contextlib.contextmanager
def own_params(where: str) -> Iterator[None]:
    """What is applied inside must find its own parameters.

    Raises:
        ValueError: If they are missing, of another shape, or nested once too often.
    """
    try:
        yield
    except _OTHERS as error:
        text = str(error).partition(" (https://")[0]
        raise ValueError(
            f"models.{where}: the parameters are not this model's ({text}). Tried: applying it. Give those that were "
            'made by this config: variables["params"], or run.state.params.'
        ) from error
