"""The image families in PyTorch, with the parameters' names of torchvision (VGG's are ours: its head is small).

Plain modules of torch.nn over images with channels first, as `benchmarks.model_torch`.
"""

import torch  # pyrefly: ignore[missing-import]
import torch.nn.functional as F  # pyrefly: ignore[missing-import]
from torch import Tensor, nn  # pyrefly: ignore[missing-import]

from benchmarks.model_families import Family


class ResidualBlock(nn.Module):
    """`relu(shortcut + two convolutions)`; where the shape changes the shortcut takes every second pixel and adds
    channels of zeros."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.more = stride, width - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.more:
            half = self.more // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.more - half))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """Three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self, classes: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        given = 16
        for stage, width in enumerate((16, 32, 64), 1):
            blocks = []
            for i in range(3):
                blocks.append(ResidualBlock(given, width, 2 if stage > 1 and not i else 1))
                given = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(given, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class VGG11(nn.Module):
    """Eight convolutions with relu, pooling after the stages, the mean, a dense layer."""

    STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))

    def __init__(self, classes: int):
        super().__init__()
        given, n = 3, 0
        for stage in self.STAGES:
            for width in stage:
                self.add_module(f"conv_{n}", nn.Conv2d(given, width, 3, 1, 1))
                given, n = width, n + 1
        self.head = nn.Linear(given, classes)

    def forward(self, x: Tensor) -> Tensor:
        n = 0
        for stage in self.STAGES:
            for _ in stage:
                x, n = F.relu(getattr(self, f"conv_{n}")(x)), n + 1
            if x.shape[-1] > 1:
                x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


class ViTAttention(nn.Module):
    """Multi-head self attention with the names of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ViTLayer(nn.Module):
    """Attention and an MLP, each after LayerNorm."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.self_attention = ViTAttention(width, heads)
        # The places of torchvision's dropout are empty.
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width), nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class ViT(nn.Module):
    """An image's patches as a sequence; the class is read at a token of its own."""

    def __init__(self, classes: int, layers: int, heads: int, width: int, mlp_ratio: int, image: int, patch: int):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, width))
        self.encoder.layers = nn.Module()
        for i in range(layers):
            self.encoder.layers.add_module(f"encoder_layer_{i}", ViTLayer(width, heads, mlp_ratio * width))
        self.encoder.ln = nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1) + self.encoder.pos_embedding
        for layer in self.encoder.layers.children():
            x = layer(x)
        return self.heads(self.encoder.ln(x)[:, 0])


class Unit(nn.Module):
    """A convolution, BatchNorm and relu."""

    def __init__(self, inputs: int, features: int, kernel: int | tuple[int, int] = 1, stride: int = 1):
        super().__init__()
        window = (kernel, kernel) if isinstance(kernel, int) else kernel
        pad = (0, 0) if stride == 2 else (window[0] // 2, window[1] // 2)
        self.conv = nn.Conv2d(inputs, features, window, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(features, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


ROW, COLUMN = (1, 7), (7, 1)
# Branches of a module: (pooling, units as (name, features, window, stride), units that end it side by side).


def _a(pool: int) -> list:
    return [
        (None, [("branch1x1", 64)], []),
        (None, [("branch5x5_1", 48), ("branch5x5_2", 64, 5)], []),
        (None, [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)], []),
        ("mean", [("branch_pool", pool)], []),
    ]


def _b() -> list:
    return [
        (None, [("branch3x3", 384, 3, 2)], []),
        (None, [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)], []),
        ("max", [], []),
    ]


def _c(n: int) -> list:
    double = [("branch7x7dbl_1", n), ("branch7x7dbl_2", n, COLUMN), ("branch7x7dbl_3", n, ROW)]
    double += [("branch7x7dbl_4", n, COLUMN), ("branch7x7dbl_5", 192, ROW)]
    return [
        (None, [("branch1x1", 192)], []),
        (None, [("branch7x7_1", n), ("branch7x7_2", n, ROW), ("branch7x7_3", 192, COLUMN)], []),
        (None, double, []),
        ("mean", [("branch_pool", 192)], []),
    ]


def _d() -> list:
    seven = [("branch7x7x3_1", 192), ("branch7x7x3_2", 192, ROW), ("branch7x7x3_3", 192, COLUMN)]
    return [
        (None, [("branch3x3_1", 192), ("branch3x3_2", 320, 3, 2)], []),
        (None, [*seven, ("branch7x7x3_4", 192, 3, 2)], []),
        ("max", [], []),
    ]


def _e() -> list:
    def ends(name: str) -> list:
        return [(f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))]

    return [
        (None, [("branch1x1", 320)], []),
        (None, [("branch3x3_1", 384)], ends("branch3x3_2")),
        (None, [("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, 3)], ends("branch3x3dbl_3")),
        ("mean", [("branch_pool", 192)], []),
    ]


class Mixed(nn.Module):
    """Branches side by side, their channels one after another."""

    def __init__(self, inputs: int, branches: list):
        super().__init__()
        self.plan, self.features = [], 0
        for pool, units, ends in branches:
            given = inputs
            for name, features, *more in units:
                self.add_module(name, Unit(given, features, *more))
                given = features
            for name, features, *more in ends:
                self.add_module(name, Unit(given, features, *more))
            self.features += sum(unit[1] for unit in ends) or given
            self.plan.append((pool, [u[0] for u in units], [u[0] for u in ends]))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for pool, units, ends in self.plan:
            y = x
            if pool is not None:
                y = F.avg_pool2d(x, 3, 1, 1) if pool == "mean" else F.max_pool2d(x, 3, 2)
            for name in units:
                y = getattr(self, name)(y)
            found += [getattr(self, name)(y) for name in ends] or [y]
        return torch.cat(found, 1)


MIXED = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _b(),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e(),
    "Mixed_7c": _e(),
}


class Inception(nn.Module):
    """Inception v3 without its second head."""

    def __init__(self, classes: int):
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2a_3x3.conv.padding = (0, 0)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Conv2d_4a_3x3.conv.padding = (0, 0)
        given = 192
        for name, branches in MIXED.items():
            mixed = Mixed(given, branches)
            self.add_module(name, mixed)
            given = mixed.features
        self.fc = nn.Linear(given, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name in MIXED:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))


def module(name: str, family: Family) -> nn.Module:
    """A family's model, its weights not yet set."""
    if name == "vit":
        return ViT(family.classes, **family.sizes)
    return {"resnet20": ResNet20, "vgg11": VGG11, "inception": Inception}[name](family.classes)
