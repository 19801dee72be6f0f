"""What every wrapper of one transformation shares: its state has a field `inner`, and what is asked of it is answered
by what it wraps."""

from collections.abc import Callable
from typing import Any

import optax

from jaxnn.optim.compose.stable import stable
from jaxnn.optim.compose.transformation import Transformation, check


def inner_of(where: str, tx: Any) -> optax.GradientTransformationExtraArgs:
    """What is to be wrapped, its dtypes made stable.

    Raises:
        TypeError: If it is no optax gradient transformation.
    """
    return stable(check(where, "tx", tx))


def wrap(
    name: str,
    inner: optax.GradientTransformation,
    init: Callable[[Any], Any],
    update: Callable[..., tuple[Any, Any]],
    part: str = "",
    **more: Any,
) -> Transformation:
    """A transformation around another, which is in its state's field `inner`.

    Args:
        name: Its name.
        inner: What it wraps.
        init: `init(params) -> state`.
        update: `update(updates, state, params=None, *, context=None, **extra) -> (updates, state)`.
        part: What paths call the inner one: "" nothing; "inner" where both may have a hyperparameter of one name.
        more: Further fields of `Transformation`.
    """
    return Transformation(
        init,
        update,
        name=name,
        parts={part: inner},
        wants_context=True,
        facts=_facts(inner) | more.pop("facts", {}),
        **more,
    )


def _facts(inner: optax.GradientTransformation) -> dict[str, Any]:
    """The facts of what is wrapped, for the wrapper's state; one of elementwise things need not be elementwise."""
    facts = dict(inner.facts) if isinstance(inner, Transformation) else {}
    facts.pop("elementwise", None)

    def through(fn: Callable[..., Any]) -> Callable[..., Any]:
        return lambda state, *rest: fn(state.inner, *rest)

    of_state = ("clip_factor", "lr_in_effect", "multipliers")
    return {key: through(value) if key in of_state else value for key, value in facts.items()}
