"""`train.diagnose`: why a run does badly, and why it is slow, each with evidence and one suggestion.

A verdict has to be earned twice: something in the run's record raises the suspicion (a curve, a share of the time), and
a measurement made for it confirms it (a few steps at a tenth of the rate, a model of random features on the same
examples, the same step without its dispatch). A run with nothing wrong has no verdict; what could not be told is listed
as such.
"""

import os
from pathlib import Path
from typing import Any

import jax

from jaxnn import bench, runs
from jaxnn.train import checks
from jaxnn.train.diagnosis import learning, speed
from jaxnn.train.diagnosis.probe import Probe
from jaxnn.train.diagnosis.verdict import Diagnosis as Diagnosis, Verdict as Verdict
from jaxnn.train.run import Run
from jaxnn.typing import Source

WHERE = "train.diagnose"


def diagnose(
    run: Run | runs.RunFolder | str | os.PathLike[str],
    data: Source | None = None,
    *,
    peaks: bench.Peaks | None = None,
) -> Diagnosis:
    """Why a run does badly, why it is slow: what was measured, and one thing to try for each.

    Looks for, under "it does badly": not finite, rate too high, rate too low, exploding gradients, vanishing gradients,
    dead units, identical units, input scale, label scale, unrelated labels, underfitting, overfitting; under "it is
    slow": waiting for data, dispatch-bound, recompiling, memory-bound.

    The run's examples and its first parameters, which its seed gives again, are put through a few steps on one device:
    some seconds, most of them compiling. Of a folder alone there are only the curves and the clock.

    Args:
        run: What `fit` gave back, or a run's folder.
        data: Where examples are taken from; by default the run's own training data.
        peaks: What the machine can do at most (`bench.peaks()`), to save measuring it where that is asked.

    Returns:
        The verdicts; false, and saying so, where nothing was found.

    Raises:
        TypeError: If `run` is neither a run nor a folder, or `data` no source.
        ValueError: If the run is one of a population (look at `run.member(i)`), or the folder holds no run.
    """
    if data is not None:
        checks.is_source(WHERE, "the data", data)
    if isinstance(run, Run):
        if run.population is not None:
            raise ValueError(
                f"{WHERE}: the run is of a population of {len(run.population)}. Diagnose one: run.member(0)."
            )
        return _diagnose(run, data, peaks)
    if isinstance(run, runs.RunFolder):
        run = run.path
    if isinstance(run, str | os.PathLike):
        return _of_folder(Path(run))
    raise TypeError(
        f"{WHERE}: the first argument must be a run or its folder, got {checks.given(run)}. Give what train.fit gave."
    )


def _diagnose(run: Run, data: Source | None, peaks: bench.Peaks | None) -> Diagnosis:
    unknown: list[str] = []
    notes: list[str] = []
    probe = None
    if run.conditions is None:
        unknown.append("what needs steps of the model: the run does not say what it was trained with.")
    elif jax.process_count() > 1:
        unknown.append("what needs steps of the model: the run is spread over several processes.")
    else:
        probe = Probe(run, data if data is not None else run.conditions.source)
    verdicts = learning.verdicts(run.history, run.stopped, probe, notes, unknown)
    verdicts += speed.verdicts(run.timing, run.conditions, probe, peaks or _measured(run), notes, unknown)
    return _finished(f"{len(run.history)} rows, {int(run.state.data_step)} steps", verdicts, notes, unknown)


def _of_folder(path: Path) -> Diagnosis:
    record = runs.read_record(path)
    notes: list[str] = []
    unknown = ["what needs steps of the model: a folder has no task. Diagnose the run that train.fit gives back."]
    unknown += record.troubles
    word, stopped = record.outcome
    verdicts = learning.verdicts(record.rows, stopped if word == "stopped" else None, None, notes, unknown)
    verdicts += speed.verdicts(record.timing, None, None, None, notes, unknown)
    return _finished(f"{record.path}, {record.step} steps", verdicts, notes, unknown)


def _finished(about: str, verdicts: list[Verdict], notes: list[str], unknown: list[str]) -> Diagnosis:
    ranked = sorted(verdicts, key=lambda verdict: verdict.severity != "severe")
    return Diagnosis(f"Diagnosis of a run, {about}", tuple(ranked), tuple(notes), tuple(unknown))


def _measured(run: Run) -> Any:
    """The peaks that the run itself measured (`train.Log(peaks=True)`), by name; None where it did not."""
    events = run.folder.journal.read("peaks") if run.folder is not None else []
    return {k: v for k, v in events[-1].items() if isinstance(v, float)} if events else None
