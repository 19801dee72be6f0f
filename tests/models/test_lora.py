"""Adapters against the formula, on matrices, stacked layers and convolutions; merged and back to the byte."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.models import LoRA, apply_lora, init_lora, merge_lora, unmerge_lora

PARAMS = {
    "conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 5)), "bias": jnp.arange(5.0)},
    "blocks": {"qkv": {"kernel": jax.random.normal(jax.random.key(1), (2, 4, 6))}},
    "head": {"kernel": jax.random.normal(jax.random.key(2), (4, 3))},
}
SPEC = LoRA(where="kernel$", rank=2, alpha=6.0)


def test_parameters_get_the_products_and_nothing_else_changes():
    adapters = init_lora(jax.random.key(3), PARAMS, SPEC)
    shapes = jax.tree.map(lambda x: x.shape, adapters)
    assert shapes["conv"]["kernel"] == {"a": (18, 2), "b": (2, 5)}
    assert shapes["blocks"]["qkv"]["kernel"] == {"a": (2, 4, 2), "b": (2, 2, 6)}
    same = apply_lora(PARAMS, adapters, SPEC)
    jax.tree.map(np.testing.assert_array_equal, same, PARAMS)
    noise = np.random.default_rng(0)
    adapters = jax.tree.map(lambda x: noise.normal(size=x.shape).astype(np.float32), adapters)
    got = apply_lora(PARAMS, adapters, SPEC)
    for layer in range(2):
        pair = adapters["blocks"]["qkv"]["kernel"]
        want = np.asarray(PARAMS["blocks"]["qkv"]["kernel"][layer], np.float64) + 3 * (
            np.asarray(pair["a"][layer], np.float64) @ np.asarray(pair["b"][layer], np.float64)
        )
        np.testing.assert_allclose(got["blocks"]["qkv"]["kernel"][layer], want, atol=1e-5)
    change = np.asarray(got["conv"]["kernel"] - PARAMS["conv"]["kernel"]).reshape(18, 5)
    assert np.linalg.matrix_rank(change, tol=1e-4) == 2
    np.testing.assert_array_equal(got["conv"]["bias"], PARAMS["conv"]["bias"])


def test_merging_is_undone_to_the_byte_and_adapters_do_not_depend_on_each_other():
    adapters = jax.tree.map(lambda x: x + 0.1, init_lora(jax.random.key(3), PARAMS, SPEC))
    merged, kept = merge_lora(PARAMS, adapters, SPEC)
    want = apply_lora(PARAMS, adapters, SPEC)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, want)
    assert (merged["head"]["kernel"] != PARAMS["head"]["kernel"]).any()
    back = unmerge_lora(merged, kept)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(PARAMS), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    alone = init_lora(jax.random.key(3), {"head": PARAMS["head"]}, SPEC)
    whole = init_lora(jax.random.key(3), PARAMS, SPEC)
    np.testing.assert_array_equal(alone["head"]["kernel"]["a"], whole["head"]["kernel"]["a"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rank=0"):
        LoRA(rank=0)
    with pytest.raises(ValueError, match="no regular expression"):
        LoRA(where="(")
    with pytest.raises(ValueError, match="is found in none of"):
        init_lora(jax.random.key(0), PARAMS, LoRA(where="attention"))
    with pytest.raises(ValueError, match=r"'conv/bias' float32\[5\] has no rank"):
        init_lora(jax.random.key(0), PARAMS, LoRA(where="bias"))
    adapters = init_lora(jax.random.key(0), PARAMS, SPEC)
    with pytest.raises(ValueError, match="adapters for"):
        apply_lora({"head": PARAMS["head"]}, adapters, SPEC)
    with pytest.raises(ValueError, match="kept has"):
        unmerge_lora({"head": PARAMS["head"]}, merge_lora(PARAMS, adapters, SPEC)[1])


def test_adapters_of_another_spec_or_model_are_refused():
    head = {"head": PARAMS["head"]}
    adapters = init_lora(jax.random.key(3), head, SPEC)
    pair = adapters["head"]["kernel"]
    with pytest.raises(ValueError, match=r"adapter of 'head/kernel' is float32\[4, 2\] .*Tried: \[4, 7\] and.*rank=7"):
        merge_lora(head, adapters, LoRA(where="kernel$", rank=7))
    with pytest.raises(ValueError, match=r"for a parameter \[5, 3\] by rank=2"):
        apply_lora({"head": {"kernel": jnp.ones((5, 3))}}, adapters, SPEC)
    with pytest.raises(ValueError, match=r"adapter of 'head/kernel' has \['a'\]. Tried: 'a' and 'b'"):
        apply_lora(head, {"head": {"kernel": {"a": pair["a"]}}}, SPEC)
    with pytest.raises(ValueError, match=r"adapters for \['other'\]"):
        apply_lora(head, {"other": pair}, SPEC)
