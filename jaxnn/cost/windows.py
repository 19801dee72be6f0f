"""How often a window's taps meet real elements: what padding and dilation leave of a convolution or a pooling."""

import math
from collections.abc import Sequence

import numpy as np


def taps(
    size: int, window: int, out: int, stride: int, low: int, base_dilation: int = 1, window_dilation: int = 1
) -> int:
    """Pairs (output position, tap) that read a real element along one axis.

    A tap that falls on padding, or on a zero that `base_dilation` put between elements, multiplies by zero; it isn't
    counted.

    Args:
        size: Length of the input along this axis.
        window: Taps.
        out: Output positions.
        stride: Step of the window.
        low: Padding in front; negative where the input is cropped.
        base_dilation: Distance between elements of the dilated input.
        window_dilation: Distance between taps.
    """
    if size <= 0:
        return 0
    end = (size - 1) * base_dilation + 1
    # A Python loop over the shorter side and NumPy over the longer one: O(out + window) memory.
    shorter, longer = sorted([(out, stride), (window, window_dilation)])
    positions = np.arange(longer[0], dtype=np.int64) * longer[1] - low
    count = 0
    for i in range(shorter[0]):
        at = positions + i * shorter[1]
        count += int(np.count_nonzero((at >= 0) & (at < end) & (at % base_dilation == 0)))
    return count


def pairs(
    size: Sequence[int],
    window: Sequence[int],
    out: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
) -> int:
    """`taps` over all axes: windows are boxes, so the count is the product over axes."""
    base = base_dilation or (1,) * len(size)
    dilation = window_dilation or (1,) * len(size)
    lows = [low for low, _ in padding]
    return math.prod(taps(*axis) for axis in zip(size, window, out, strides, lows, base, dilation, strict=True))
