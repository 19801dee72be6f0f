"""Mixtures of two examples with soft targets: mixup and cutmix, as sources over a source.

The partner of an example is drawn from the whole data set, not from its batch, so that what an example becomes is a
function of (seed, data step, example id): the same on any number of devices and hosts, and after a resume.
"""

from typing import Any

import numpy as np

from jaxnn.data import order
from jaxnn.data.given import example_numbers, is_whole
from jaxnn.data.transforms import take_at
from jaxnn.tree import describe
from jaxnn.typing import HostArray, Resident, Source


def beta_shares(words: HostArray, alpha: float) -> HostArray:
    """Numbers in [0, 1] that follow Beta(alpha, alpha), float32, from words uint32 [B]: the inverse of its distribution
    at (word + 1/2) / 2^32."""
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, (words.astype(np.float64) + 0.5) / 2**32).astype(np.float32)


def boxes(shares: HostArray, words: HostArray, height: int, width: int) -> tuple[HostArray, HostArray]:
    """Which pixels come from the partner, bool [B, height, width], and the share that stays, float32 [B].

    A box with the image's proportions and 1 - share of its area, its centre anywhere in the image (words uint32 [B]),
    cut at the edges; the share is what the cut box really leaves.
    """
    inside = np.ones((len(shares), height, width), bool)
    spread = (words & np.uint32(0xFFFF), words >> np.uint32(16))
    for axis, (n, word) in enumerate(zip((height, width), spread, strict=True), 1):
        half = n * np.sqrt(1 - shares.astype(np.float64)) / 2
        centre = word.astype(np.float64) * n / 2**16
        at = np.arange(n)
        low, high = np.rint(centre - half), np.rint(centre + half)
        along = (at >= low[:, None]) & (at < high[:, None])
        inside &= along[:, :, None] if axis == 1 else along[:, None, :]
    return inside, np.float32(1) - inside.mean((1, 2), dtype=np.float32)


class Mixed:
    """A source whose examples are mixtures of two of another; made by `mixup` and `cutmix`."""

    takes_step = True

    def __init__(self, source: Source, classes: int, alpha: float, probability: float, seed: int, cut: bool):
        self.source, self.classes, self.alpha, self.probability = source, classes, alpha, probability
        self.seed, self.cut = seed, cut
        self._where = "data.cutmix" if cut else "data.mixup"
        real = all(isinstance(value, (int, float)) for value in (alpha, probability))
        if not is_whole(classes, 2) or not real or not alpha > 0 or not 0 < probability <= 1:
            raise ValueError(
                f"{self._where}: classes={classes}, alpha={alpha}, probability={probability}. Tried: two classes or "
                f"more, alpha > 0, a probability in (0, 1]. Write {self._where}(source, 10), say."
            )

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"{'cutmix' if self.cut else 'mixup'}({self.source!r}, alpha={self.alpha:g})"

    def _soft(self, y: HostArray) -> HostArray:
        if np.issubdtype(y.dtype, np.floating) and y.shape[1:] == (self.classes,):
            return y
        if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
            raise ValueError(
                f"{self._where}: targets {describe(y)}. Tried: class ids [B], or probabilities [B, {self.classes}]. "
                "Give such targets."
            )
        if y.size and not 0 <= int(y.min()) <= int(y.max()) < self.classes:
            raise ValueError(
                f"{self._where}: class ids from {y.min()} to {y.max()}. Tried: [0, {self.classes}). Give classes="
                f"{int(y.max()) + 1}, or other ids."
            )
        return (y[:, None] == np.arange(self.classes)).astype(np.float32)

    def take(self, index: HostArray, step: int = 0) -> dict[str, HostArray]:
        """The mixtures of the examples `index` [B] as data step `step` sees them: "x", and "y" [B, classes]."""
        index = example_numbers(self._where, index, len(self))
        first = order.words(self.seed, step, index)
        # Other words for the box and for whether to mix at all.
        second = order.words((self.seed + 0x9E3779B9) & 0xFFFFFFFF, step, index)
        partner = (first[:, 1].astype(np.uint64) * np.uint64(len(self)) >> np.uint64(32)).astype(index.dtype)
        share = beta_shares(first[:, 0], self.alpha)
        share = np.where(second[:, 1] < self.probability * 2**32, share, np.float32(1))
        mine, other = take_at(self.source, index, step), take_at(self.source, partner, step)
        x: Any = mine["x"]
        if not np.issubdtype(x.dtype, np.floating) or (self.cut and x.ndim != 4):
            shape = " [B, height, width, channels]" if self.cut else ""
            raise ValueError(f"{self._where}: 'x' {describe(x)}. Tried: floats{shape}. Give images as floats.")
        if self.cut:
            inside, share = boxes(share, second[:, 0], *x.shape[1:3])
            x = np.where(inside[..., None], other["x"], x)
        else:
            part = share.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
            x = part * x + (1 - part) * other["x"]
        y = share[:, None] * self._soft(mine["y"]) + (1 - share[:, None]) * self._soft(other["y"])
        return {**mine, "x": x, "y": y}

    def resident(self) -> Resident | None:
        """None: an example is another one every step."""
        return None


def mixup(source: Source, classes: int, alpha: float = 0.2, probability: float = 1.0, seed: int = 0) -> Mixed:
    """A source of mixtures `s x + (1 - s) x'`, `s y + (1 - s) y'`, s from Beta(alpha, alpha) for each example.

    Targets become probabilities [B, classes], which `losses.cross_entropy` takes, and `metrics.accuracy` by the
    largest. Put it around random transforms, so that both parts are moved; validate against `one_hot` targets.

    Args:
        source: Examples {"x": floats [B, ...], "y": class ids [B] or probabilities [B, classes]}.
        classes: How many.
        alpha: > 0; small values mix little, 1 evenly.
        probability: Share of examples that are mixed, in (0, 1].
        seed: Tells two mixtures apart.

    Raises:
        ValueError: If a setting is out of range, or at take the examples are others.

    Source:
        Zhang et al. 2018, arXiv:1710.09412.
    """
    return Mixed(source, classes, alpha, probability, seed, cut=False)


def cutmix(source: Source, classes: int, alpha: float = 1.0, probability: float = 1.0, seed: int = 0) -> Mixed:
    """A source whose images have a box of another image, targets mixed by the areas; arguments as `mixup`.

    Source:
        Yun et al. 2019, arXiv:1905.04899.
    """
    return Mixed(source, classes, alpha, probability, seed, cut=True)
