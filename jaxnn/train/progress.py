"""What a person sees while a run goes on: a live line on a terminal and in notebooks, plain lines in a log."""

import html
import importlib
import math
import re
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
    """One bar in a notebook's cell that is rewritten in place; needs nothing but IPython.

    Each update replaces the output of the same display id, so that a notebook that is run and saved by a program
    (nbclient, papermill) keeps the last one alone.
    """

    def __init__(self) -> None:
        self._display = importlib.import_module("IPython.display").display
        self._handle: Any = None

    def show(self, text: str, share: float) -> None:
        """Shows `text`, parts of a line, beside a bar that is filled to `share`."""
        content = {"text/plain": text, "text/html": bar_html(text, share)}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def stop(self) -> None:
        """Leaves the last line where it is."""


class _Terminal:
    """One line of a terminal that is rewritten in place."""

    def __init__(self, console: Any) -> None:
        from rich.live import Live

        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, text: str, share: float) -> None:
        """Shows `text`."""
        from rich.text import Text

        del share  # the line has the steps
        self._live.update(Text(text), refresh=True)

    def print(self, text: str) -> None:
        """Prints above the line."""
        self._live.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leaves the last line where it is."""
        self._live.stop()


def bar_html(text: str, share: float) -> str:
    """A line of progress as HTML: a bar, the steps, then the values and the speed, in the notebook's colours."""
    width = 100 * min(1.0, max(0.0, share))
    bar = (
        '<span style="display:inline-block;flex:none;width:12em;height:.6em;border-radius:.3em;overflow:hidden;'
        'background:rgba(128,128,128,.25)">'
        f'<span style="display:block;width:{width:.1f}%;height:100%;background:#3b82d6"></span></span>'
    )
    parts = "".join(f"<span>{html.escape(part)}</span>" for part in re.split(r" \| |  ", text) if part)
    style = "display:flex;flex-wrap:wrap;gap:.1em 1.4em;align-items:center;font-variant-numeric:tabular-nums"
    return f'<div style="{style}">{bar}{parts}</div>'


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
            self._live = _Terminal(self._console)
        if self._live is not None:
            self._live.show(f"{plan.steps:,} steps | compiling", 0.0)

    def show(self, text: str) -> None:
        """Prints above the display."""
        if isinstance(self._live, _Terminal):
            self._live.print(text)
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
            self._live.show(text, step / self._plan.steps)
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
            assert self._plan is not None
            self._live.show(self._line(), self._row.get("step", 0) / self._plan.steps)
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
