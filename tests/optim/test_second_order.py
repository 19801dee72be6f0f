"""SOAP, Shampoo and PSGD-Kron: what they reduce to, and what they converge to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import optim, tree
from jaxnn.optim.algorithms import psgd, soap
from jaxnn.optim.compose.matrices import Heads, views


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def updates_of(tx, params, grads):
    """The updates of each of the gradients, one after another."""
    update, state, made = jax.jit(tx.update), tx.init(params), []
    for g in grads:
        u, state = update(g, state, params)
        made.append(u)
    return made, state


TREE = {"w": normal(3, 5), "t": normal(4, 2, seed=1), "b": normal(3, seed=2)}
GRADS = [jax.tree.map(lambda p, i=i: jnp.sin((7 + i) * p), TREE) for i in range(4)]


def test_soap_without_a_basis_is_adam():
    ours, _ = updates_of(optim.soap_core(0.9, 0.95, max_dim=0), TREE, GRADS)
    adam, _ = updates_of(optim.adam_core(0.9, 0.95), TREE, GRADS)
    close(ours, adam)


def test_soap_in_a_basis_of_axes_is_adam_one_update_later():
    """Gradients that are diagonal have statistics whose eigenvectors are axes: their squares are Adam's."""
    grads = [{"w": jnp.diag(jnp.asarray([1.0, -2.0, 4.0]) * np.cos(i))} for i in range(4)]
    ours, state = updates_of(optim.soap_core(0.9, 0.95, every=2), grads[0], grads)
    adam, _ = updates_of(optim.adam_core(0.9, 0.95), grads[0], grads[1:])
    close(ours[0]["w"], jnp.zeros((3, 3)))
    close(ours[1:], adam, 1e-4)
    close(jnp.abs(state.q_left["w"]), jnp.eye(3)[::-1], 1e-4)


def test_soap_turns_with_its_gradients():
    """In another basis of the same space the same happens: Adam would not."""
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(5).normal(size=(4, 4)))[0], jnp.float32)
    grads = [{"w": normal(4, 4, seed=i)} for i in range(4)]
    turned = [{"w": turn @ g["w"]} for g in grads]
    tx = optim.soap_core(every=1)
    plain, other = (updates_of(tx, gs[0], gs)[0] for gs in (grads, turned))
    close([{"w": turn @ u["w"]} for u in plain], other, 2e-3)


@pytest.mark.parametrize("kind", ["tall", "dead rows", "zero", "full"])
def test_soap_leaves_no_basis_to_rounding(kind):
    """Of the null space of one gradient's statistics LAPACK gives any basis: the last bit turned a vector by 0.9."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(24, 24 if kind == "full" else 6)) * (kind != "zero")
    g[10:] *= kind != "dead rows"
    bases = []
    for rounding in (0, 1e-7):
        x = jnp.asarray(g * (1 + rounding * rng.normal(size=g.shape)), jnp.float32)
        bases.append(np.asarray(soap.eigenbasis((x @ x.T)[None])[0], np.float64))
    np.testing.assert_allclose(np.abs(np.diag(bases[0].T @ bases[1])), 1, atol=1e-4)
    np.testing.assert_allclose(bases[0].T @ bases[0], np.eye(24), atol=1e-5)
    turned = bases[0].T @ (g @ g.T) @ bases[0]
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-5 * np.abs(turned).max())
    assert (np.diff(np.diag(turned)) <= 1e-5 * np.abs(turned).max()).all()


def test_shampoo_without_memory_is_the_polar_factor():
    g = normal(4, 4)
    (u,), _ = updates_of(optim.shampoo_core(0.0, 0.0, 0.0, every=1, graft=None), {"w": g}, [{"w": g}])
    left, _, right = np.linalg.svd(np.asarray(g, np.float64))
    close(u["w"], left @ right, 1e-3)
    v = normal(5)
    (u,), _ = updates_of(optim.shampoo_core(0.0, 0.0, 0.0, every=1, graft=None), v, [v])
    close(u, v / jnp.linalg.norm(v), 1e-3)


def test_shampoo_sums_and_takes_roots_as_the_paper_has_them():
    grads = [{"w": normal(3, 2, seed=i)} for i in range(3)]
    made, _ = updates_of(optim.shampoo_core(0.0, 1.0, 0.1, every=1, graft=None), grads[0], grads)
    left, right = np.zeros((3, 3)), np.zeros((2, 2))

    def root(x):
        values, vectors = np.linalg.eigh(x + 0.1 * np.eye(len(x)))
        return vectors * values**-0.25 @ vectors.T

    for g, u in zip((np.asarray(g["w"], np.float64) for g in grads), made):
        left, right = left + g @ g.T, right + g.T @ g
        close(u["w"], root(left) @ g @ root(right), 1e-4)


def test_shampoo_of_blocks_is_each_block_alone():
    grads = [{"w": normal(5, 6, seed=i)} for i in range(3)]
    tx = optim.shampoo_core(every=1, block=3, graft=None)
    whole, state = updates_of(tx, grads[0], grads)
    assert state.left["w"].shape == (2, 2, 3, 3)
    cut = lambda g: {"a": g["w"][:3, :3], "b": g["w"][:3, 3:], "c": g["w"][3:, :3], "d": g["w"][3:, 3:]}  # noqa: E731
    parts, _ = updates_of(tx, cut(grads[0]), [cut(g) for g in grads])
    close([cut(u) for u in whole], parts, 2e-3)


def test_shampoo_takes_the_graft_and_its_length():
    made, _ = updates_of(optim.shampoo_core(every=3), TREE, GRADS)
    adam, _ = updates_of(optim.adam_core(), TREE, GRADS)
    close(made[:2], adam[:2])  # no roots yet
    for name in TREE:
        assert float(jnp.linalg.norm(made[2][name])) == pytest.approx(float(jnp.linalg.norm(adam[2][name])), rel=1e-4)
        assert float(jnp.abs(made[2][name] - adam[2][name]).max()) > 1e-2
    with pytest.raises(TypeError, match=r"optim.shampoo: 'graft' must be an optax gradient transformation"):
        optim.shampoo_core(graft="adam")


def test_psgd_makes_gradients_white():
    """Rows of sizes 10, 1 and 0.1 come out alike; so do a vector's elements."""
    rng = np.random.default_rng(0)
    sizes = jnp.asarray([10.0, 1.0, 0.1])
    noise = jnp.asarray(rng.normal(size=(600, 3, 4)), jnp.float32)
    tx = optim.psgd_kron_core(0.0, fit_share=1.0)
    params = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(3)}

    def step(state, z):
        u, state = tx.update({"w": sizes[:, None] * z, "b": sizes * z[:, 0]}, state, params)
        return state, u

    state, made = jax.jit(lambda: jax.lax.scan(step, tx.init(params), noise))()
    rows = np.sqrt(np.mean(np.square(made["w"][-200:]), (0, 2)))
    elements = np.sqrt(np.mean(np.square(made["b"][-200:]), 0))
    assert rows.max() / rows.min() < 2
    assert 0.5 < rows.mean() < 1.5
    assert elements.max() / elements.min() < 2
    assert np.array_equal(state.left["w"], np.triu(state.left["w"]))


def test_psgd_balances_without_changing_the_preconditioner():
    ql, qr = jnp.triu(normal(2, 3, 3)), normal(2, 4, seed=1)
    x = normal(2, 3, 4, seed=2)
    before = psgd.apply(qr, psgd.apply(ql, x, 0), 1)
    bl, br = psgd.balanced(ql, qr)
    close(psgd.apply(br, psgd.apply(bl, x, 0), 1), before)
    close(jnp.abs(bl).max((1, 2)), jnp.abs(br).max(1))


def test_psgd_waits_as_its_share_says():
    tx = optim.psgd_kron_core(fit_share=0.25)
    update, state, seen = jax.jit(tx.update), tx.init(TREE), []
    for g in GRADS:
        _, state = update(g, state, TREE)
        seen.append((int(state.waited), int(state.fits)))
    assert seen == [(1, 0), (2, 0), (3, 0), (0, 1)]
    assert float(psgd.annealed(0)) == 1.0
    assert float(psgd.annealed(10_000)) == pytest.approx(0.03)


def test_views_of_every_kind_of_leaf_fold_and_unfold():
    params = {
        "layers": jnp.arange(24.0).reshape(2, 3, 4),
        "kernel": jnp.arange(24.0).reshape(2, 2, 2, 3),
        "vector": jnp.arange(4.0),
        "scalar": jnp.asarray(2.0),
        "complex": jnp.arange(6.0).reshape(2, 3) * (1 + 2j),
        "heads": jnp.arange(24.0).reshape(4, 6),
    }
    with tree.declaring(lambda: {"layers": tree.Role("matrix", 1), "kernel": tree.Role("conv")}):
        known = views("test", params, {optim.path("heads"): Heads(3)}, complex_as_pairs=True)
    shapes = {view.path: (view.batch, view.rows, view.cols) for view in known}
    assert shapes == {
        "complex": (1, 2, 6),
        "heads": (3, 4, 2),
        "kernel": (1, 8, 3),
        "layers": (2, 3, 4),
        "scalar": (1, 1, 1),
        "vector": (1, 1, 4),
    }
    for view, x in zip(known, jax.tree.leaves(params)):
        folded = view.fold(x)
        assert folded.shape == (view.batch, view.rows, view.cols)
        np.testing.assert_array_equal(view.unfold(folded), x)
        np.testing.assert_array_equal(view.unwide(view.wide(x)), x)
    np.testing.assert_array_equal(known[1].fold(params["heads"])[1], params["heads"][:, 2:4])
