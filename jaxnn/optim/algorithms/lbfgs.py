"""L-BFGS: curvature from the last steps. Thin over optax, whose two-loop recursion and line searches are right."""

import optax

from jaxnn.optim.compose.scaling import scale_by_lr
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.typing import Schedule


def lbfgs(
    lr: float | Schedule | None = None, memory: int = 10, *, linesearch_steps: int = 20, metrics: tuple[str, ...] = ()
) -> Transformation:
    """L-BFGS, ready to train with; meant for full batches.

    Args:
        lr: A fixed rate or schedule; None finds the step by a zoom line search on the batch, which needs `value`,
            `grad` and `value_fn` (`fit` gives them).
        memory: Steps remembered, >= 1.
        linesearch_steps: At most, an update.
        metrics: See `stages`.

    Raises:
        ValueError: If `memory` is below 1.

    Source:
        Liu & Nocedal 1989; Nocedal & Wright 2006, Algorithms 7.4, 3.5, 3.6.
    """
    core = optax.scale_by_lbfgs(memory_size=memory)
    if lr is not None:
        return stages(lbfgs=core, lr=scale_by_lr(lr), metrics=metrics)
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=linesearch_steps, initial_guess_strategy="one")
    return stages(lbfgs=core, descend=optax.scale(-1.0), search=search, metrics=metrics)
