"""Errors about sizes list what fits, and take no longer where the sizes are absurd."""

import pytest

from jaxnn import models
from jaxnn.models.sizes import divisors


def test_what_divides_a_size():
    assert divisors(16, 6) == [1, 2, 4]
    assert divisors(12, 12) == [1, 2, 3, 4, 6, 12]


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (models.GPTConfig, {"width": 2**31 - 2, "heads": 4}),
        (models.GPTConfig, {"width": 2**62 + 2, "heads": 2**61}),
        (models.GPTConfig, {"width": 2**62, "heads": 2**61, "kv_heads": 3}),
        (models.BERTConfig, {"width": 2**62 + 2, "heads": 2**61}),
        (models.ViTConfig, {"image": 2**62 + 2, "patch": 2**61}),
    ],
)
def test_an_absurd_size_is_refused_at_once(make, sizes):
    with pytest.raises(ValueError, match=r"one of \[1, 2"):
        make(**sizes)
