"""What `make_vision_fixtures.py` and the tests agree on: weights by name, images, and what is kept of a tensor."""

import zlib

import numpy as np

MODES = {
    "resnet_basic": ("eval", "train"),
    "resnet_bottleneck": ("eval", "train"),
    "resnet_small": ("eval", "train"),
    "vgg": ("eval",),
    "vgg_bn": ("eval", "train"),
    "vit": ("eval",),
    "inception": ("eval", "train"),
}
SIDES = {"resnet_small": 13, "vit": 16, "vgg": 40, "vgg_bn": 64, "inception": 75}


def draw(name, shape):
    """A tensor in torch's layout from its name: positive for scales and variances, He-scaled for matrices; float32."""
    return _draw(name, shape).astype(np.float32)


def _draw(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape) if name.endswith("weight") else 0.1 * rng.standard_normal(shape)
    return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))


def inputs(name, mode="eval"):
    """Images [B, side, side, 3] and what the logits are multiplied by [B, 5]; B is 2 or 4, values are float32."""
    side = 299 if (name, mode) == ("inception", "train") else SIDES.get(name, 45)
    rng = np.random.default_rng(7)
    count = 2 if name == "inception" else 4
    images, probe = rng.standard_normal((count, side, side, 3)), np.random.default_rng(8).standard_normal((count, 5))
    return images.astype(np.float32), probe.astype(np.float32)


def summary(x):
    """The norm of a tensor, and its sums with two vectors of random signs."""
    flat = np.asarray(x, np.float64).ravel()
    signs = np.random.default_rng(3).choice([-1.0, 1.0], (2, flat.size))
    return np.array([np.linalg.norm(flat), *(signs @ flat)])
