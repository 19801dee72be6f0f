"""T5's config.json, both ways."""

import dataclasses

import pytest

from jaxnn import models
from jaxnn.models.weights.t5 import ARCHITECTURE

SMALL = models.TransformerConfig(
    vocab=12, width=8, heads=2, hidden=8, layers=1, decoder_layers=1, buckets=4, distance=8
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_what_is_written_is_read_again(activation, gated, tied):
    config = dataclasses.replace(SMALL, activation=activation, gated=gated, tied=tied, head_width=4)
    assert ARCHITECTURE.read(ARCHITECTURE.write(models.Transformer(config)), frozenset()).config == config


def test_what_transformers_5_says_of_t5_1_1():
    config = ARCHITECTURE.write(models.Transformer(SMALL))
    assert ARCHITECTURE.read(config | {"scale_decoder_outputs": True}, frozenset()).config.tied
    assert not ARCHITECTURE.read(config | {"scale_decoder_outputs": False}, frozenset()).config.tied
