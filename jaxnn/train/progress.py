"""What a person sees while a run goes on: a live line on a terminal and in notebooks, plain lines in a log."""

import importlib
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from jaxnn.train.hooks import Plan

FIRST = ("loss", "val_loss", "accuracy", "val_accuracy", "bits_per_byte", "val_bits_per_byte", "learning_rate")
HIDDEN = ("step", "epoch", "grad_norm", "nonfinite_step", "nonfinite_name", "partial")
LINE_S = 10.0  # between plain lines
LIVE_S = 0.1  # between updates of a live line


def seconds(value: float) -> str:
    """A duration for people: "3.2s", "4m05s", "2h03m"."""
    if not math.isfinite(value):
        return "?"
    if value < 60:
        return f"{value:.1f}s"
    if value < 3600:
        return f"{int(value // 60)}m{int(value % 60):02d}s"
    return f"{int(value // 3600)}h{int(value % 3600 // 60):02d}m"


def values_text(row: Mapping[str, Any]) -> str:
    """The values of a row, the ones that people look for first."""
    shown = {k: v for k, v in row.items() if k not in HIDDEN and isinstance(v, float | int)}
    names = [k for k in FIRST if k in shown] + [k for k in shown if k not in FIRST]
    return "  ".join(f"{name} {shown[name]:.4g}" for name in names)


class _Notebook:
    """One line in a notebook's cell that is rewritten in place; needs nothing but IPython."""

    def __init__(self) -> None:
        self._display = importlib.import_module("IPython.display").display
        self._handle: Any = None

    def update(self, text: str, *, refresh: bool) -> None:
        """Shows `text`."""
        del refresh  # rich's Live has it
        content = {"text/plain": text}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def stop(self) -> None:
        """Leaves the last line where it is."""


class Progress:
    """Shows steps, values, speed, the share of time spent waiting for data, and the time that is left.

    In a log, a line of training and one of validation every `LINE_S` seconds, the first and the last always; each shows
    the newest value of every name.
    """

    def __init__(self) -> None:
        self._live: Any = None
        self._row: dict[str, Any] = {}
        self._speed: dict[str, float] = {}
        self._plan: Plan | None = None
        self._printed: dict[bool, float] = {}  # when a line was last printed, by whether it told a validation
        self._shown = True  # whether what is known has been printed
        self._left = math.inf

    def begin(self, plan: Plan) -> None:
        """Opens the display."""
        self._plan = plan
        from rich.console import Console

        self._console = Console(soft_wrap=True)
        if self._console.is_jupyter:
            self._live = _Notebook()
        elif self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()

    def show(self, text: str) -> None:
        """Prints above the display."""
        if self._live is not None and not isinstance(self._live, _Notebook):
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stdout, flush=True)

    def timing(self, row: Mapping[str, Any]) -> None:
        """Takes in the speed of the last window."""
        self._speed = {
            k: v for k, v in row.items() if k in ("tokens_per_s", "examples_per_s", "wait_share", "steps_per_s")
        }
        self._left = row.get("left_s", math.inf)

    def first(self, step: int, values: Mapping[str, Any]) -> None:
        """Shows the first step's values, long before the first row."""
        assert self._plan is not None
        text = f"step {step:,}/{self._plan.steps:,} | {values_text(values)}"
        if self._live is not None:
            self._live.update(text, refresh=True)
        else:
            print(text, flush=True)

    def row(self, row: Mapping[str, Any]) -> None:
        """Takes in a row, and shows it unless one of its kind was shown a moment ago."""
        self._row = {**self._row, **row}
        self._shown = False
        kind = any(name.startswith("val_") for name in row)
        now = time.perf_counter()
        if now - self._printed.get(kind, -math.inf) >= (LINE_S if self._live is None else LIVE_S):
            self._printed[kind] = now
            self._print()

    def _print(self) -> None:
        self._shown = True
        if self._live is not None:
            self._live.update(self._line(), refresh=True)
        else:
            print(self._line(), flush=True)

    def _line(self) -> str:
        assert self._plan is not None
        step, total = self._row.get("step", 0), self._plan.steps
        speed = ""
        if "tokens_per_s" in self._speed:
            speed = f"{self._speed['tokens_per_s']:,.0f} tokens/s"
        elif "examples_per_s" in self._speed:
            speed = f"{self._speed['examples_per_s']:,.0f} examples/s"
        waiting = f"waiting {100 * self._speed.get('wait_share', 0.0):.0f}%"
        parts = [
            f"step {step:,}/{total:,}",
            values_text(self._row),
            speed,
            waiting if speed else "",
            f"left {seconds(self._left)}" if step < total else "",
        ]
        return " | ".join(part for part in parts if part)

    def finish(self) -> None:
        """Shows the newest values, and closes the display."""
        if not self._shown:
            self._print()
        if self._live is not None:
            self._live.stop()
            self._live = None
