"""What every optimizer of the registry is held to, whatever its rule: one matrix over all of them.

optax's issues that the columns stand for are named in tests/optim/compose. Sharding is in compose/test_specs.py,
storage dtypes in compose/test_dtypes.py, parity with the reference packages in test_parity.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import optim, runs, tree
from jaxnn.optim.registry import OPTIMIZERS

STEPS = 60
# Every program runs once or thrice on a few numbers: most of this file's time is LLVM's, which need not try hard.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Their programs take seconds to compile: two of the columns are theirs in the full run only.
HEAVY = {"lbfgs", "psgd_kron", "shampoo", "soap"}
LIGHT_FIRST = [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in OPTIMIZERS]
# An elementwise rule, one of matrices and a wrapper: what CI runs on the newest lane, and of bfloat16 by default.
FEW = {"adamw", "lookahead", "muon"}
FEW_SMOKE = [pytest.param(name, marks=pytest.mark.smoke if name in FEW else ()) for name in OPTIMIZERS]
FEW_ONLY = [pytest.param(name, marks=pytest.mark.smoke if name in FEW else pytest.mark.slow) for name in OPTIMIZERS]


def parameters(dtype=jnp.float32):
    return {"b": jnp.asarray([-0.5, 0.6], dtype), "w": jnp.asarray([[0.7, -0.4], [0.3, 0.5], [-0.6, 0.4]], dtype)}


def loss(p, which=0.0, **_):
    """0 is a parabola with its axes turned, 1 Rosenbrock's valley, scaled so that one rate does for both."""
    x = jnp.concatenate([jnp.ravel(p["w"]).real, p["b"]]).astype(jnp.float32)
    target = jnp.linspace(-1, 1, 8)
    parabola = jnp.sum(jnp.square(x - target) * jnp.linspace(0.2, 1, 8)) + 0.3 * jnp.square(jnp.sum(x - target))
    valley = jnp.sum(5 * jnp.square(x[1:] - jnp.square(x[:-1])) + jnp.square(1 - x[:-1])) / 4
    return (1 - which) * parabola + which * valley


def step(tx, needs, fn, params, state):
    """One update on `fn`, with the extra arguments that the optimizer needs."""
    value, grads = jax.value_and_grad(fn)(params)
    known = {"value": value, "value_fn": fn}
    extra = {name: known[name] for name in needs} | ({"grad": grads} if "value_fn" in needs else {})
    updates, state = tx.update(grads, state, params, **extra)
    return optim.apply_updates(params, updates), state


@functools.cache
def built(name):
    """The optimizer, and its step on the parabola, jitted once for all tests; `traces` counts."""
    entry = OPTIMIZERS[name]
    tx = entry.make(entry.lr)
    traces = []

    def traced(params, state):
        traces.append(1)
        return step(tx, entry.needs, loss, params, state)

    return tx, entry, jit(traced), traces


def close(a, b, tolerance=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def kinds(state):
    return [(path, np.shape(x), jnp.result_type(x)) for path, x in tree.leaves_by_path(state).items()]


@pytest.mark.parametrize("name", FEW_SMOKE)
def test_one_program_makes_headway_whatever_runs_it(name):
    """Parabola and Rosenbrock; jit = scan = vmap; one trace over steps and rates; abstract init; state unchanged."""
    tx, entry, once, traces = built(name)
    params = parameters()
    state = tx.init(params)
    assert kinds(jax.eval_shape(tx.init, params)) == kinds(state)

    def run(which):
        fn = functools.partial(loss, which=which)

        def body(carry, _):
            carry = step(tx, entry.needs, fn, *carry)
            return carry, (carry[0], fn(optim.eval_params(carry[1], carry[0])))

        return jax.lax.scan(body, (params, tx.init(params)), length=STEPS)[1]

    path, values = jit(jax.vmap(run))(jnp.asarray([0.0, 1.0]))
    for which, share in ((0.0, 0.7), (1.0, 0.9)):
        assert float(values[int(which), -1]) < share * float(loss(params, which)), f"{name}: {values[int(which), ::10]}"

    before = kinds(state)
    for turn in range(3):
        params, state = once(params, state)
        close(params, jax.tree.map(lambda x, t=turn: x[0, t], path), 1e-4)
    assert kinds(state) == before
    if "lr" in optim.hyper(state):
        still, state = once(params, optim.set_hyper(state, lr=0.0))
        if not name.startswith(("schedule_free", "lars")):
            close(still, params, 1e-6)  # those average, or have the rate inside their momentum
    assert len(traces) == 1


@pytest.mark.parametrize("name", LIGHT_FIRST)
def test_eager_is_jitted_and_a_state_that_was_saved_goes_on(name, tmp_path):
    """From the library's own checkpoint, into what abstract `init` says, to the bit."""
    tx, entry, once, _ = built(name)
    params = parameters()
    two = once(*once(params, tx.init(params)))
    with runs.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, two, {}, wait=True)
        restored = checkpoints.restore((params, jax.eval_shape(tx.init, params)), 2).state
    three, again = once(*two), once(*jax.tree.map(jnp.asarray, restored))
    jax.tree.map(np.testing.assert_array_equal, three, again)
    eager = step(tx, entry.needs, loss, *two)
    close(eager[0], three[0], 1e-4)


@pytest.mark.parametrize("name", FEW_ONLY)
def test_bfloat16_parameters_make_no_nan_and_no_second_program(name):
    """optax #1414, #1207, #1098."""
    tx, entry, _, _ = built(name)
    traces = []

    @jit
    def once(params, state):
        traces.append(1)
        return step(tx, entry.needs, loss, params, state)

    params = parameters(jnp.bfloat16)
    state = jit(tx.init)(params)
    before = kinds(state)
    for _ in range(3):
        params, state = once(params, state)
    assert len(traces) == 1
    assert kinds(state) == before
    assert all(x.dtype == jnp.bfloat16 and np.isfinite(x.astype(np.float32)).all() for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", LIGHT_FIRST)
def test_leaves_of_no_size_and_complex_ones(name):
    tx, entry, _, _ = built(name)
    params = {
        "c": jnp.asarray([[0.3 + 0.4j, -0.2 + 0.1j], [0.5j, 0.6], [0.1, -0.7j]], jnp.complex64),
        "none": jnp.zeros((0,)),
        "rows": jnp.zeros((0, 3)),
        "scalar": jnp.asarray(0.5),
        "w": jnp.ones((2, 3)),
    }
    fn = lambda p, **_: sum(jnp.sum(jnp.square(jnp.abs(x - 0.1))) for x in jax.tree.leaves(p))  # noqa: E731

    def conjugated(params, state):
        value, grads = jax.value_and_grad(fn)(params)
        grads = jax.tree.map(jnp.conj, grads)  # jax's gradient of a real function descends by its conjugate
        known = {"value": value, "value_fn": fn, "grad": grads}
        extra = {n: known[n] for n in entry.needs} | ({"grad": grads} if "value_fn" in entry.needs else {})
        updates, state = tx.update(grads, state, params, **extra)
        return optim.apply_updates(params, updates), state

    def run(params):
        turn = lambda carry, _: (conjugated(*carry), None)  # noqa: E731
        return jax.lax.scan(turn, (params, tx.init(params)), length=60)[0]

    new, _ = jit(run)(params)
    assert kinds(new) == kinds(params)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(new))
    assert float(fn(new)) < float(fn(params))
    for part in (jnp.real, jnp.imag):
        off = [float(jnp.sum(jnp.abs(part(p["c"] - 0.1)))) for p in (new, params)]
        assert off[0] < off[1]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "lbfgs" else ()) for n in OPTIMIZERS])
def test_micro_batches_are_one_batch_and_layers_stacked_are_layers_apart(name):
    """Matrices and vectors of two layers, interleaved as models have them, over four updates.

    What needs the objective is given that of the whole batch, which curves, and whose gradient the micro-batches have
    in the mean.
    """
    tx, entry, _, _ = built(name)
    rng = np.random.default_rng(0)
    shapes = {"b": (3,), "w": (3, 2)}
    keys = {kind: [f"{layer}/{kind}" for layer in range(2)] for kind in shapes}
    draw = lambda *lead: {  # noqa: E731
        key: jnp.asarray(rng.normal(size=(*lead, *shapes[kind])), jnp.float32) for kind in shapes for key in keys[kind]
    }
    apart, grads = draw(), draw(4)
    stack = lambda t, axis: {kind: jnp.stack([t[key] for key in keys[kind]], axis) for kind in shapes}  # noqa: E731

    def objective(g):
        curved = 1.0 if entry.needs else 0.0
        return lambda p, **_: sum(jnp.sum(g[k] * x) + curved * jnp.sum(jnp.square(x)) for k, x in p.items())

    def plainly(params, grads):
        def body(carry, g):
            return step(tx, entry.needs, objective(g), *carry), None

        return jax.lax.scan(body, (params, tx.init(params)), grads)[0][0]

    def accumulated(params, grads):
        many = optim.accumulate(tx, 2)

        def body(carry, g):  # each is cut into two that differ, whose mean it is
            params, state = carry
            value, g = jax.value_and_grad(fn := objective(g))(params)
            extra = {need: {"value": value, "value_fn": fn}[need] for need in entry.needs}
            extra |= {"grad": g} if entry.needs else {}
            half = jax.tree.map(lambda x: x * jnp.linspace(0, 2, x.size).reshape(x.shape), g)
            rest = jax.tree.map(lambda x, h: 2 * x - h, g, half)
            updates, state = many.emit(rest, many.add(half, state), params, **extra)
            return (optim.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, many.init(params)), grads)[0][0]

    @jit
    def all_ways():
        with tree.declaring(lambda: {"b": tree.Role("vector", 1), "w": tree.Role("matrix", 1)}):
            stacked = plainly(stack(apart, 0), stack(grads, 1))
        return plainly(apart, grads), stacked, accumulated(apart, grads)

    plain, stacked, micro = all_ways()
    close(micro, plain)
    close(stacked, stack(plain, 0))
