"""What is wrong with a model's layers: what they are given, their gradients, their units."""

import numpy as np

from jaxnn.train.diagnosis.layers import Layers, Weight
from jaxnn.train.diagnosis.probe import Probe
from jaxnn.train.diagnosis.verdict import BADLY, Verdict

DEAD = 0.4  # of a layer's units: cs231n, "Neural networks 1", names 40 % as what too high a rate does
# Of the largest layer's gradient: float32 sums keep little of what is smaller. A layer of sigmoids leaves 1/4 at most
# (Glorot and Bengio 2010, section 4).
VANISHED = 1e-4
# The same upwards; and the gradient's norm over the parameters': at a rate of 1e-3 a step of ten times them.
EXPLODED = 1e4
SMALL_SCALE, LARGE_SCALE = 0.01, 10.0  # around 1, what initialisers are made for: LeCun et al. 1998, section 4.3


def scales(probe: Probe) -> list[Verdict]:
    """Inputs of the first layer, or targets, far from a scale of 1."""
    found = []
    seen = probe.at_first.first_input
    if seen is not None and "Norm" not in seen[1] and not SMALL_SCALE <= seen[2] <= LARGE_SCALE:
        path, kind, rms, mean, spread = seen
        found.append(
            Verdict(
                "input scale",
                BADLY,
                f"The first layer, {path} ({kind}), sees inputs of root mean square {rms:.3g} (mean {mean:.3g}, "
                f"standard deviation {spread:.3g}); initialisers and rates are made for about 1.",
                "Standardise the inputs: x = (x - mean) / std over the training data (images: x / 255).",
                "severe",
            )
        )
    y = probe.examples.get(probe.task.about.get("targets", ""))
    if y is not None and y.dtype.kind == "f" and probe.task.about.get("loss") in ("mse", "mae", "huber"):
        rms, mean, spread = float(np.sqrt(np.mean(np.square(y)))), float(y.mean()), float(y.std())
        if rms > LARGE_SCALE or 0 < spread < SMALL_SCALE:
            found.append(
                Verdict(
                    "label scale",
                    BADLY,
                    f"The targets have mean {mean:.3g} and standard deviation {spread:.3g}; a model gives values of "
                    f"about 1 at first, and {'gradients grow' if rms > LARGE_SCALE else 'errors vanish'} with them.",
                    f"Train on y = (y - {mean:.3g}) / {spread:.3g}, and undo it in what is predicted.",
                    "severe",
                )
            )
    return found


# ---- layers


def gradients(probe: Probe) -> list[Verdict]:
    """Gradients that explode or vanish, over all or layer by layer."""
    for layers, when in ((probe.at_last, "at the end"), (probe.at_first, "at the first parameters")):
        if layers is None or len(layers.weights) < 1:
            continue
        sizes = {path: w.gradient for path, w in layers.weights.items()}
        named = list(sizes)
        norm, held = layers.gradient_norm, layers.parameter_norm
        grown = list(layers.outputs.values())
        if not np.isfinite([norm, layers.loss]).all() or norm > EXPLODED * max(held, 1.0):
            text = f"The gradient's norm is {norm:.3g} {when}, the parameters' {held:.3g}."
            if len(grown) > 1:
                ends = list(layers.outputs)
                text += f" The layers' outputs go from {grown[0]:.3g} ({ends[0]}) to {grown[-1]:.3g} ({ends[-1]})."
            return [_exploding(text)]
        if len(named) < 3:
            continue
        largest, first, last = max(sizes.values()), sizes[named[0]], sizes[named[-1]]
        if layers.ordered and last > 0 and first > EXPLODED * last:
            return [_exploding(f"{_per_layer(layers)} {when}: it grows backwards.")]
        begun = probe.at_first.weights
        most = VANISHED * max(w.gradient for w in begun.values())
        early = [path for path in named[: -(-len(named) // 2)] if 0 < sizes[path] < VANISHED * largest]
        if early and begun[early[0]].gradient < most:  # from the first on: not only of what is learned already
            return [
                Verdict(
                    "vanishing gradients",
                    BADLY,
                    f"{_per_layer(layers)} {when}: {early[0]} gets {sizes[early[0]] / largest:.1g} of the largest.",
                    "Use relu or gelu with an initialiser that keeps the scale (he_normal), normalise between layers, "
                    "or add skip connections.",
                    "severe",
                )
            ]
    return []


def _exploding(text: str) -> Verdict:
    return Verdict(
        "exploding gradients",
        BADLY,
        text,
        "Initialise smaller (lecun_normal, he_normal: a variance of 1 or 2 over the inputs), and clip the gradient: "
        "optax.chain(optax.clip_by_global_norm(1.0), tx).",
        "severe",
    )


def _per_layer(layers: Layers, most: int = 6) -> str:
    """The gradients by layer, in a line."""
    items = [f"{path} {weight.gradient:.2g}" for path, weight in layers.weights.items()]
    if len(items) > most:
        items = [*items[: most // 2], "...", *items[-most // 2 :]]
    return f"Gradients by layer (root mean square): {', '.join(items)},"


def _inner(layers: Layers) -> dict[str, Weight]:
    """The weights whose units other layers use."""
    outer = list(layers.weights)[-1:]
    return {path: w for path, w in layers.weights.items() if w.role != "head" and w.units > 1 and path not in outer}


def dead_of(layers: Layers) -> dict[str, Weight]:
    """The weights of which too many units answer to no example."""
    return {path: w for path, w in _inner(layers).items() if w.dead >= max(2, DEAD * w.units)}


def units(probe: Probe) -> list[Verdict]:
    """Units that are all alike, or dead."""
    layers = probe.at_last or probe.at_first
    inner, dead = _inner(layers), dead_of(layers)
    same = [path for path, w in inner.items() if w.same]
    if same:
        path = same[0]
        alike = "are all 0" if inner[path].size == 0 else "are all the same"
        return [
            Verdict(
                "identical units",
                BADLY,
                f"The weights of the {inner[path].units} units of {path} {alike}: they get the same gradient, and "
                "never become different.",
                "Initialise the weights at random (lecun_normal, the default), and only biases by a constant.",
                "severe",
            )
        ]
    if not dead:
        return []
    listed = ", ".join(f"{w.dead} of {w.units} units of {path}" for path, w in dead.items())
    before = dead_of(probe.at_first)
    return [
        Verdict(
            "dead units",
            BADLY,
            f"No output depends on {listed}, for any of {len(probe.examples['mask'])} examples: their activation never "
            f"leaves its flat side. At the first parameters it was {'so already' if before else 'not so'}.",
            "Initialise biases at 0 and weights by lecun_normal, and let the activation have a slope near 0."
            if before
            else "Lower the rate, or use an activation with a slope on both sides (nn.leaky_relu, nn.gelu).",
            "severe" if any(w.dead == w.units for w in dead.values()) else "moderate",
        )
    ]
