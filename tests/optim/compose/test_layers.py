"""What is drawn at random for a layer is the same in a loop's layout and in a scan's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models, optim, tree
from jaxnn.optim.compose import layers, select


def model(dtype=jnp.float32):
    """Twelve layers in both layouts, and the roles of the scan's."""
    config = models.GPTConfig(vocab=12, length=4, layers=12, heads=2, width=8, scan=False)
    shapes = jax.eval_shape(models.GPT(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    loop = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), dtype), shapes)
    guessed = {path: tree.guess_role(path, leaf).name for path, leaf in tree.leaves_by_path(loop).items()}
    scanned = models.stack_layers(loop)
    declared = {
        path: tree.Role(guessed[path.replace("blocks/", "blocks_0/")], int(path.startswith("blocks/")))
        for path in tree.leaves_by_path(scanned)
    }
    return loop, scanned, declared


def run(tx, params, count=3):
    def body(carry, number):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.sin(3 * p.astype(jnp.float32) + number).astype(p.dtype), params)
        updates, state = tx.update(grads, state, params)
        return (optim.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), jnp.arange(float(count)))[0][0])(params)


# With the share of the elements that may differ: a last bit before rounding sends an element the other way now and
# then. Of bits drawn anew it would be every second.
DRAWING = {
    "psgd_kron": pytest.param(lambda: optim.psgd_kron(1e-2), jnp.float32, 0, marks=pytest.mark.slow),
    "rounding": (lambda: optim.stochastic_rounding(optim.adamw(1e-3)), jnp.bfloat16, 2e-3),
    "storage": pytest.param(
        lambda: optim.with_state_dtype(optim.adamw(1e-2), jnp.bfloat16), jnp.float32, 2e-3, marks=pytest.mark.slow
    ),
    "storage_of_factors": pytest.param(
        lambda: optim.with_state_dtype(optim.adafactor(1e-2, min_dim=4), jnp.bfloat16),
        jnp.float32,
        2e-3,
        marks=pytest.mark.slow,
    ),
}


@pytest.mark.parametrize(("make", "dtype", "share"), DRAWING.values(), ids=DRAWING)
def test_a_models_layouts_draw_the_same(make, dtype, share):
    """And `stacked`, whose optimizer sees the scan's layout of a loop's parameters."""
    loop, scanned, declared = model(dtype)
    apart = models.stack_layers(run(make(), loop))
    stacked = models.stack_layers(run(optim.stacked(make()), loop))
    with tree.declaring(lambda: declared):
        together = run(make(), scanned)
    flat = lambda params: np.concatenate([np.ravel(x).astype(np.float32) for x in jax.tree.leaves(params)])  # noqa: E731
    for other in (stacked, together):
        off = ~np.isclose(flat(other), flat(apart), rtol=1e-5, atol=1e-6)
        assert off.mean() <= share


def test_every_layer_has_a_number_of_its_own():
    loop, scanned, declared = model()
    numbers = lambda params: dict(  # noqa: E731
        zip(tree.leaves_by_path(params), layers.numbers(jax.tree.leaves(select.leaves(params))), strict=True)
    )
    apart = numbers(loop)
    with tree.declaring(lambda: declared):
        together = numbers(scanned)
    assert all(x.dtype == np.uint32 for x in apart.values())
    assert (apart["blocks_10/qkv/kernel"].shape, together["blocks/qkv/kernel"].shape) == ((), (12,))
    assert together["blocks/qkv/kernel"][10] == apart["blocks_10/qkv/kernel"]
    assert len({int(x) for x in apart.values()}) == len(apart)
