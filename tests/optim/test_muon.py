"""Muon and its relatives: what orthogonalizing gives, and that stacks, heads, layouts and devices change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnn import models, optim, tree
from jaxnn.optim.algorithms.orthogonalize import POLAR_EXPRESS


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def orthogonal(m, n):
    return jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(max(m, n), min(m, n))))[0], jnp.float32)


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def once(tx, grads, params=None):
    params = jax.tree.map(jnp.zeros_like, grads) if params is None else params
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]


CHOICES = [
    optim.newton_schulz(),
    optim.newton_schulz(gram=1),
    optim.polar_express(8),
    optim.polar_express(6, gram=1.5),
    optim.newton_schulz(12, (1.875, -1.25, 0.375)),
]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_singular_values_go_to_one_and_vectors_stay(choice, shape):
    x = normal(2, *shape)
    made = np.asarray(jax.jit(choice)(x), np.float64)
    u, _, v = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    inside = np.swapaxes(u, -2, -1) @ made @ np.swapaxes(v, -2, -1)
    values = np.diagonal(inside, axis1=-2, axis2=-1)
    np.testing.assert_allclose(inside, values[..., None] * np.eye(min(shape)), atol=2e-4)
    exact = choice.steps[-1] != CHOICES[0].steps[-1]
    np.testing.assert_allclose(values, 1, atol=2e-2 if exact else 0.35)


def test_each_step_is_the_papers_polynomial():
    sigma = np.linspace(0.05, 1, 6)
    for choice in (optim.newton_schulz(3), optim.polar_express(3)):
        expected = sigma / np.linalg.norm(sigma) / choice.margin
        for a, b, c in choice.steps:
            expected = a * expected + b * expected**3 + c * expected**5
        np.testing.assert_allclose(np.diag(choice(jnp.asarray(np.diag(sigma), jnp.float32)[None])[0]), expected, 1e-5)
    assert optim.polar_express(10).steps[-1] == POLAR_EXPRESS[-1]


def test_a_scale_may_compute_in_jnp():
    """Traced, its values had no truth to compare."""
    grads = {"wide": normal(2, 3), "tall": normal(3, 2, seed=1)}
    one = optim.newton_schulz(1)
    mine = optim.muon_core(orthogonalize=one, scale=lambda m, n: jnp.sqrt(jnp.maximum(1.0, n / m)))
    close(once(mine, grads), once(optim.muon_core(orthogonalize=one, scale=optim.spectral), grads))


def test_of_an_orthogonal_momentum_is_itself_scaled():
    grads = {"w": orthogonal(8, 3) * 7, "t": (orthogonal(8, 3) * 0.01).T}
    tx = optim.muon_core(orthogonalize=optim.polar_express(8), scale=optim.unscaled)
    updates = once(tx, grads)
    close(updates, {"w": orthogonal(8, 3), "t": orthogonal(8, 3).T}, 1e-3)
    matched = once(optim.muon_core(orthogonalize=optim.polar_express(8)), grads)
    close(matched, jax.tree.map(lambda u: 0.2 * np.sqrt(8) * u, updates), 1e-6)
    wide = once(optim.muon_core(orthogonalize=optim.polar_express(8), scale=optim.spectral), grads)
    close(wide["t"], np.sqrt(8 / 3) * updates["t"], 1e-6)
    close(wide["w"], updates["w"], 1e-6)


def test_complex_matrices_take_conjugate_transposes():
    g = normal(4, 6) + 1j * normal(4, 6, seed=1)
    u, _, v = np.linalg.svd(np.asarray(g, np.complex128), full_matrices=False)
    close(once(optim.muon_core(orthogonalize=optim.polar_express(8), scale=optim.unscaled), g), u @ v, 1e-2)


@pytest.mark.parametrize("core", [optim.muon_core, optim.normuon_core])
def test_a_stack_is_its_matrices_one_by_one(core):
    grads = {"a": normal(4, 6), "b": normal(6, 4, seed=1), "c": normal(4, 6, seed=2), "d": normal(3, 4, 6, seed=3)}
    grads["empty"] = jnp.zeros((0, 4))
    tx = core()
    together = once(tx, grads)
    for name, g in grads.items():
        parts = list(g) if name == "d" else [g]
        alone = [once(tx, {"w": part})["w"] for part in parts]
        close(together[name], jnp.stack(alone) if name == "d" else alone[0])


@pytest.mark.parametrize("core", [optim.muon_core, optim.normuon_core])
def test_heads_are_matrices_of_their_own(core):
    grads = {"qkv": normal(4, 12), "out": normal(12, 4, seed=1)}
    tx = core(split_heads={optim.path("qkv"): 3, optim.path("out"): optim.Heads(3, "in")})
    updates = once(tx, grads)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        close(updates["qkv"][:, part], once(core(), grads["qkv"][:, part]))
        close(updates["out"][part], once(core(), grads["out"][part]))


@pytest.mark.parametrize(
    "make", [optim.muon, *(pytest.param(make, marks=pytest.mark.slow) for make in (optim.normuon, optim.soap))]
)
def test_loop_and_scan_layouts_of_a_model_give_equal_updates(make):
    config = models.GPTConfig(vocab=16, length=8, layers=3, heads=2, width=8, scan=False)
    task_params = models.GPT(config).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    loop = tree.map_by_path(lambda path, p: normal(*p.shape, seed=len(path)) + p, task_params)
    tx = make(1e-2) if make is optim.soap else make(1e-2, split_heads={optim.path("qkv/kernel"): 6})
    scanned = models.stack_layers(loop)
    declared = {
        path: tree.Role(
            tree.guess_role(path, leaf).name if leaf.ndim < 3 else "matrix", int(path.startswith("blocks/"))
        )
        for path, leaf in tree.leaves_by_path(scanned).items()
    }
    declared |= {path: tree.Role("vector", 1) for path in declared if "norm" in path and path.startswith("blocks/")}
    one = once(tx, loop, loop)
    with tree.declaring(lambda: declared):
        other = once(tx, scanned, scanned)
    assert all(np.any(u) for u in jax.tree.leaves(one))
    close(models.stack_layers(one), other)


def test_sharded_matrices_give_the_same(devices8):
    grads = {f"w{i}": normal(8, 16, seed=i) for i in range(3)} | {"t": normal(16, 8, seed=7), "b": normal(16, seed=8)}
    tx = optim.muon(1e-2)
    mesh = Mesh(np.asarray(devices8), ("x",))
    specs = {"w0": ("x",), "w1": (None, "x"), "w2": (), "t": (None, "x"), "b": ("x",)}
    placed = {k: jax.device_put(g, NamedSharding(mesh, PartitionSpec(*specs[k]))) for k, g in grads.items()}
    close(once(tx, placed, placed), once(tx, grads, grads))


def test_others_take_adam_at_their_own_rate():
    params = {"w": normal(4, 6), "bias": normal(6, seed=1), "embedding": normal(9, 4, seed=2)}
    updates = once(optim.muon(1e-2, weight_decay=0.0, adam_lr=1e-3), params, params)
    alone = {k: params[k] for k in ("bias", "embedding")}
    close({k: updates[k] for k in alone}, once(optim.adamw(1e-3, 0.9, 0.95, weight_decay=0.0), alone, alone))
    close(updates["w"], -1e-2 * once(optim.muon_core(), params["w"]))
    half = optim.muon(optim.cosine(1e-2, 10), adam_lr=5e-3, weight_decay=0.0)
    close(once(half, params, params)["bias"], 5 * updates["bias"])
    with pytest.raises(ValueError, match="no `peak`"):
        optim.muon(lambda step: 0.1, adam_lr=1e-3)


def test_normuon_gives_every_neuron_its_share():
    u = once(optim.normuon_core(rms=0.3), normal(16, 6) * jnp.asarray([1e-2, 1, 1, 1, 1, 50.0]))
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(u), 0)), 0.3, rtol=1e-3)


def test_refusals_name_the_leaf():
    with pytest.raises(ValueError, match=r"optim.muon: leaf 'b' \(6,\) is no matrix.*optim.groups\(muon="):
        optim.muon_core().init({"b": jnp.zeros(6)})
    with pytest.raises(ValueError, match=r"leaf 'w' \(4, 6\) does not split into 4 heads along its 'out' axis"):
        optim.muon_core(split_heads={optim.everything: 4}).init({"w": jnp.zeros((4, 6))})
    with pytest.raises(TypeError, match="split_heads must be"):
        optim.muon_core(split_heads=3)
    with pytest.raises(TypeError, match="orthogonalize is 'polar'"):
        optim.muon_core(orthogonalize="polar")
    with pytest.raises(ValueError, match="steps is 0"):
        optim.polar_express(0)


@pytest.mark.parametrize("orthogonalize", [optim.newton_schulz(), optim.polar_express(3, gram=1.5)])
def test_one_cpu_takes_a_matrix_at_a_time(orthogonalize, monkeypatch):
    stack = jax.random.normal(jax.random.key(0), (3, 4, 6))
    together = orthogonalize(stack)  # eight devices, over which the stack may be split
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert "scan[" in str(jax.make_jaxpr(lambda x: orthogonalize(x))(stack))
    np.testing.assert_allclose(orthogonalize(stack), together, rtol=1e-5, atol=1e-6)


def test_no_momentum_is_copied():
    """Stacking the old momenta, which the new ones replace in place, copied each of them."""
    params = {f"block_{i}": jnp.ones((8, 8)) for i in range(6)}
    tx = optim.muon(1e-3)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    text = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile().as_text()
    assert "f32[8,8]" in text
    assert not [line for line in text.splitlines() if " = f32[8,8]" in line and " copy(" in line]
