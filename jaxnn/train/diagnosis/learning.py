"""Why a run does badly."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnn import metrics
from jaxnn.train import checks
from jaxnn.train.diagnosis import curves, faults, quality
from jaxnn.train.diagnosis.curves import Curve
from jaxnn.train.diagnosis.probe import Probe
from jaxnn.train.diagnosis.verdict import BADLY, Verdict

USUAL_RATIO = 1e-3  # update over parameter, a step: Karpathy, lectures "makemore" part 3; cs231n, "Neural networks 3"
LOW_RATIO = 1e-4  # a tenth of it: a run of a thousand steps then moves its parameters by a tenth
HIGH_RATIO = 1e-2  # ten times it
LATE = 0.3  # of the fall in the second half: a straight line has 1/2, an exponential that lives 1/4 of the run 0.12
ROSE = 1.2  # times the first loss: worse than untrained
BETTER = 0.5  # of the loss, at another rate after the same steps: not by chance
FASTER = 3.0  # times the fall, and
WORTH = 0.01  # of the loss more
RAISED = (10.0, 100.0, 1000.0)  # times the rate
LOWERED = (0.1, 0.01)
WELL = 0.95  # explained: whatever else is unusual, it does not do badly
POOR = 0.1  # explained: hardly more than a constant
BEATEN = 0.6  # of what the run leaves unexplained is left by the reference, or less
ROSE_AGAIN = 0.2  # of the best held-out loss
APART = 0.1  # training over held-out loss, and then
UNLEARNED = 0.2  # of the first loss, held out: most of what was learned does not hold elsewhere
GOOD = 0.95  # of held-out accuracy
STILL = 0.01  # of accuracy, below its best: then the held-out loss rises by confidence alone


def verdicts(
    history: Sequence[Mapping[str, Any]],
    stopped: str | None,
    probe: Probe | None,
    notes: list[str],
    unknown: list[str],
) -> list[Verdict]:
    """What is wrong with how a run learns. What could not be told goes to `unknown`, what is no trouble to `notes`.

    Args:
        history: The rows of the run.
        stopped: Why it ended early, if it did.
        probe: What measures; None of a folder alone.
        notes: Appended to.
        unknown: Likewise.
    """
    found: list[Verdict] = []
    loss = curves.curve(history, "loss")
    broken = any("nonfinite_step" in row for row in history)
    if loss is None and not broken:
        unknown.append(f"what the curve says: it needs {curves.LEAST} rows. Train longer, or log=train.Log(every=...).")
    share = None

    def guarded(what: str, look: Callable[[], Any]) -> Any:
        try:
            return look()
        except Exception as error:  # a diagnosis of the rest is worth more than the error of a part
            unknown.append(f"{what}: it could not be measured ({checks.reason(error)}).")
            return None

    if probe is not None:
        share = guarded("what the model explains", lambda: _explained(probe)) if probe.finite else None
        badly = broken or share is None or math.isnan(share) or share < WELL
        if badly:
            found += guarded("the scale of inputs and targets", lambda: faults.scales(probe)) or []
            if not found:
                found += guarded("gradients", lambda: faults.gradients(probe)) or []
                found += guarded("units", lambda: faults.units(probe)) or []
            if not found or (_named(found, "dead units") and not faults.dead_of(probe.at_first)):
                rate = guarded("the rate", lambda: _rate(loss, broken, share, probe))
                found = [rate, *found] if rate is not None else found
    elif loss is not None and loss.end > ROSE * loss.first:
        found.append(_diverged(loss, "Try a tenth of the rate."))
    if broken and not any(v.severity == "severe" for v in found):
        found.append(_not_finite(history, stopped))
    found += _overfitting(history, loss, unknown)
    if not found and loss is not None and probe is not None and not math.isnan(share if share is not None else 0.0):
        found += guarded("underfitting", lambda: _underfitting(loss, share, probe, notes)) or []
    if not found and loss is not None and loss.falling and (share is None or not share >= WELL):
        notes.append(
            f"the loss was still falling, from {loss.middle:.4g} in the middle to {loss.end:.4g}: train longer."
        )
    return found


def _named(found: list[Verdict], part: str) -> bool:
    return any(part in verdict.name for verdict in found)


def _explained(probe: Probe) -> float | None:
    outputs = probe.outputs
    targets = quality.targets_of(probe.task, probe.examples, outputs)
    return None if targets is None else quality.explained(targets.predicted(outputs), targets.values)


def _of(share: float | None) -> str:
    return "" if share is None or math.isnan(share) else f" The model explains {max(share, -99):.0%} of the targets."


# ---- the rate


def _diverged(loss: Curve, what: str) -> Verdict:
    return Verdict("rate too high", BADLY, f"The loss rose from {loss.first:.4g} to {loss.end:.4g}.", what, "severe")


def _rate(loss: Curve | None, broken: bool, share: float | None, probe: Probe) -> Verdict | None:
    """A suspicion from the curve and the ratio, confirmed by the same first steps at another rate."""
    worse = loss is not None and loss.end > ROSE * loss.first
    poor = share is None or share < WELL
    stuck = loss is not None and not loss.falling and poor and probe.ratio > HIGH_RATIO
    if broken or worse or stuck:
        return _too_high(loss, broken, probe)
    if loss is None or not poor or probe.ratio >= LOW_RATIO:
        return None
    slowly = loss.falling and loss.late_share > LATE
    unmoved = abs(loss.first - loss.end) < 0.05 * abs(loss.first)
    if not (slowly or unmoved):
        return None
    # The same batches each time: what differs is the rate alone.
    trials = {factor: probe.trial(factor, first=False) for factor in (0.0, 1.0, *RAISED)}
    tail = max(1, len(trials[0.0]) // 8)
    fell = {f: float((trials[0.0] - t)[-tail:].mean()) for f, t in trials.items() if np.isfinite(t).all()}
    best = max(fell, key=lambda f: fell[f])
    if best < 10 or fell[best] < FASTER * max(fell[1.0], 0.0) or fell[best] < WORTH * abs(loss.end):
        return None
    return Verdict(
        "rate too low",
        BADLY,
        f"The loss went from {loss.first:.4g} to {loss.end:.4g}, and an update is {probe.ratio:.1e} of the parameters "
        f"(median over layers; about {USUAL_RATIO:g} is usual). {len(trials[0.0])} more steps bring it down by "
        f"{fell[1.0]:.2g}; at {best:g} times the rate by {fell[best]:.2g}.",
        f"Try {best:g} times the rate.",
        "severe" if share is None or share < 0.5 else "moderate",
    )


def _too_high(loss: Curve | None, broken: bool, probe: Probe) -> Verdict | None:
    results = {factor: probe.trial(factor, first=True) for factor in (1.0, *LOWERED)}
    tail = max(1, len(results[1.0]) // 8)
    ends = {factor: float(t[-tail:].mean()) for factor, t in results.items()}
    finite = {f: e for f, e in ends.items() if f < 1 and math.isfinite(e)}
    began = float(results[0.01][0])
    if not finite or min(finite.values()) >= began:
        return None
    best = min(finite, key=lambda f: finite[f])
    if math.isfinite(ends[1.0]) and finite[best] > BETTER * ends[1.0] and not (broken and ends[1.0] > began):
        return None
    how = "The loss stopped being finite." if broken else ""
    if loss is not None and not broken:
        how = f"The loss went from {loss.first:.4g} to {loss.end:.4g}, at best {loss.best:.4g}."
    return Verdict(
        "rate too high",
        BADLY,
        f"{how} From the first parameters on, {len(results[1.0])} steps bring the loss from {began:.4g} to "
        f"{ends[1.0]:.4g}; at {best:g} times the rate to {finite[best]:.4g}. An update is {probe.ratio:.1e} of the "
        f"parameters (about {USUAL_RATIO:g} is usual).",
        f"Try {best:g} times the rate.",
        "severe",
    )


def _not_finite(history: Sequence[Mapping[str, Any]], stopped: str | None) -> Verdict:
    row = next(row for row in history if "nonfinite_step" in row)
    name, step = row.get("nonfinite_name"), row["nonfinite_step"]
    return Verdict(
        "not finite",
        BADLY,
        f"{name} is not finite at step {step}" + (f"; the run stopped: {stopped}." if stopped else "."),
        "Look where it begins: fit(..., debug=True) names the first layer, parameter or gradient.",
        "severe",
    )


# ---- fit


def _overfitting(history: Sequence[Mapping[str, Any]], loss: Curve | None, unknown: list[str]) -> list[Verdict]:
    """The held-out loss rose again, or never followed the training loss down."""
    held = curves.column(history, "val_loss")
    if len(held) == 0:
        unknown.append("overfitting: the run has no held-out values. Pass validation= to fit.")
        return []
    if loss is None or not np.isfinite(held).all() or loss.end >= held[-1]:
        return []
    for name in {name for row in history for name in row if name.startswith("val_")}:
        if metrics.better(name) == "max":
            values = curves.column(history, name)
            if len(values) and values[-1] >= max(values.max() - STILL, GOOD):
                return []  # what people read is as good as ever: the loss grows by confidence alone
    rises, end = curves.rises_again(held, ROSE_AGAIN), float(held[-1])
    if rises is not None:
        at, best, end = rises
        step = [row["step"] for row in history if "val_loss" in row][at]
        seen = f"The held-out loss was best at step {step}, {best:.4g}, and is {end:.4g} at the end"
    elif len(held) > 1 and loss.end < APART * end and end > UNLEARNED * loss.first:
        best = end
        seen = f"The held-out loss is {end:.4g} at the end"
    else:
        return []
    return [
        Verdict(
            "overfitting",
            BADLY,
            f"{seen}; the training loss fell from {loss.first:.4g} to {loss.end:.4g}.",
            "More data, a smaller model, dropout or weight decay; and keep the best: train.EarlyStopping('val_loss')."
            if rises is None
            else "Stop where it is best: train.EarlyStopping('val_loss'); then more data, dropout, or weight decay.",
            "severe" if end > 2 * best or rises is None else "moderate",
        )
    ]


def _underfitting(loss: Curve, share: float | None, probe: Probe, notes: list[str]) -> list[Verdict]:
    if share is None or share >= WELL or loss.falling:
        return []
    if not loss.flat:
        notes.append("underfitting: the loss is too noisy to tell whether it has stopped falling. Train longer.")
        return []
    told = _of(share)
    more = probe.take(np.arange(min(len(probe.source), 2000)))
    targets = quality.targets_of(probe.task, more, np.zeros((len(more["mask"]), *probe.outputs.shape[1:])))
    x = more.get(probe.task.about.get("inputs", ""))
    best = None
    if targets is not None and x is not None and x.dtype.kind == "f" and len(targets.values) == len(x):
        best = quality.reference(x, targets.values)
    flat = f"The training loss has stopped falling, at {loss.end:.4g}.{told}"
    if best is not None and 1 - best < BEATEN * (1 - share):
        return [
            Verdict(
                "underfitting",
                BADLY,
                f"{flat} Ridge regression on {quality.FEATURES} random features explains {best:.0%}, of examples it "
                "was not fitted to.",
                "Make the model larger (wider, deeper) until it overfits one batch; regularise after that.",
                "severe" if share < 0.5 else "moderate",
            )
        ]
    if share < POOR and best is not None and best < POOR:
        return [
            Verdict(
                "unrelated labels",
                BADLY,
                f"{flat} Ridge regression on {quality.FEATURES} random features explains no more ({max(best, 0):.0%}).",
                "Look at some examples with their targets: are they paired as they should be, shuffled together?",
                "severe",
            )
        ]
    if share < POOR and best is None:
        return [
            Verdict(
                "underfitting",
                BADLY,
                f"{flat} That is hardly more than a constant would.",
                "Train on one batch until it is learned by heart; if that fails, look at the model and the targets.",
                "severe",
            )
        ]
    return []
