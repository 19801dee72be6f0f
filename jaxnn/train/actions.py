"""What hooks ask for, done: stopping, saving, another state, going back."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxnn import parallel, tree
from jaxnn.core.state import abstract, strong
from jaxnn.train.hooks import Continue, Hook, Moment, Replace, Rewind, Save, Stop
from jaxnn.train.together import same_action

if TYPE_CHECKING:
    from jaxnn.train.session import Session


class Actions:
    """Lets the hooks of a session act."""

    def __init__(self, session: "Session"):
        self.session = session

    def take(self, due: Sequence[Hook], *, final: bool, step: int | None = None, stop: str | None = None) -> str | None:
        """Lets every hook that is due act; gives why the run stops, if it does (`stop`, where it does already)."""
        engine = self.session.engine
        step = engine.data_step if step is None else step
        save = False
        for hook in due:
            at = Moment(
                step=step,
                plan=self.session.plan,
                state=engine.state,
                values={k: v for k, v in self.session.values.items() if k not in ("step", "epoch")},
                final=final or stop is not None or engine.data_step == self.session.plan.steps,
                report=functools.partial(self._report, step),
                journal=self.session.journal,
                show=self.session.show,
            )
            action = hook.act(at)
            parallel.beat()
            same_action(hook.name, step, action)
            if action is None or isinstance(action, Continue):
                continue
            if isinstance(action, Stop):
                self.session.journal("stop", hook=hook.name, reason=action.reason)
                self.session.show(f"{hook.name}: stopping at step {step}: {action.reason}")
                stop = action.reason if stop is None else stop
            elif isinstance(action, Save):
                save = True  # once the others have acted: what they remember is in the checkpoint
            elif isinstance(action, Replace):
                self._replace(hook, action)
            elif isinstance(action, Rewind):
                if stop is None:
                    self._rewind(hook, action)
                    return None
                self.session.show(f"{hook.name}: no rewind to step {action.step}, for the run stops: {stop}")
            else:
                raise TypeError(
                    f"train.fit: hook {hook.name} gave {action!r:.80}; it must be Continue, Stop, Save, Replace, "
                    "Rewind or None."
                )
        if save:
            self.session.checkpoint()
        return stop

    def _report(self, step: int, values: Mapping[str, Any]) -> None:
        scalars = {name: value for name, value in values.items() if np.ndim(value) == 0}
        self.session.emit({"step": step, "epoch": round(step / self.session.plan.epoch, 6)} | scalars)

    def _replace(self, hook: Hook, action: Replace) -> None:
        engine = self.session.engine
        new = action.state_fn(engine.state)
        shapes = jax.tree.map(lambda x: abstract(x) if hasattr(x, "dtype") else x, new)
        changes = list(tree.differences(self.session.like, shapes))
        if changes or jax.tree.structure(self.session.like) != jax.tree.structure(new):
            raise ValueError(
                f"train.fit: hook {hook.name} replaced the state by another kind of state (before against after): "
                f"{'; '.join(changes[:4]) or 'another structure'}. Keep every leaf's shape and dtype: "
                "state._replace(params=...)."
            )
        # A weakly typed leaf (jnp.asarray(1e-4)) would make the step compile again.
        new = jax.tree.map(lambda x: strong(x) if getattr(x, "weak_type", False) else x, new)
        engine.state = self.session.strategy.put_state(new)
        self.session.journal("replace", hook=hook.name, why=action.why)
        self.session.show(f"{hook.name}: {action.why}")

    def _rewind(self, hook: Hook, action: Rewind) -> None:
        if self.session.saver is None:
            raise ValueError(f"train.fit: hook {hook.name} asked for a rewind, but nothing is saved. Pass out= to fit.")
        good = self.session.saver.good_before(action.step)
        if good is None:
            raise ValueError(
                f"train.fit: hook {hook.name} asked for a rewind to step {action.step}; no good checkpoint is that old."
            )
        engine = self.session.engine
        came_from = engine.data_step
        if action.skip is not None:
            self.session.skips.append((int(action.skip[0]), int(action.skip[1])))
        engine.move(*self.session.restore(good, hooks=False))
        self.session.speed.restart(engine.data_step, engine.wait_s)
        self.session.journal("rewind", hook=hook.name, came_from=came_from, to=engine.data_step, skip=action.skip)
        self.session.show(f"{hook.name}: from step {came_from} back to {engine.data_step}, leaving out {action.skip}")
