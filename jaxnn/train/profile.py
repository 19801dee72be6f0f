"""A profiler's trace of some steps of a run, and the table of what they spent their time on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

ROWS = 15


@dataclasses.dataclass
class Profile:
    """Traces the data steps [start, stop) of a run into `folder`.

    Attributes:
        span: (start, stop), in data steps.
        folder: Where the trace and `operations.txt` go.
        program: Gives the text of the run's optimized program, which names layers and source lines.
    """

    span: tuple[int, int]
    folder: Path
    program: Callable[[], str]
    open: bool = False

    def at(self, step: int) -> str | None:
        """Called between steps, with nothing outstanding; at the span's end gives the table."""
        start, stop = self.span
        if step == start and not self.open:
            jax.profiler.start_trace(str(self.folder))
            self.open = True
        elif self.open and step >= stop:
            return self.close()
        return None

    def close(self) -> str | None:
        """Ends the trace where one is open, and gives the costliest operations as text."""
        if not self.open:
            return None
        self.open = False
        jax.profiler.stop_trace()
        from jaxnn.bench.profiling import op_table

        rows = op_table(self.folder, [self.program()])
        lines = [f"{'share':>6} {'ms':>9} {'count':>7}  operation  (layer, source)"]
        for row in rows[:ROWS]:
            origin = row.origin
            place = ", ".join(part for part in (origin.layer, origin.phase, origin.stage, origin.source) if part)
            lines.append(f"{100 * row.share:5.1f}% {1e3 * row.seconds:9.2f} {row.count:7}  {row.op}  ({place})")
        text = "\n".join(lines)
        (self.folder / "operations.txt").write_text(text + "\n")
        return text
