"""Each pitfall is an error that names the culprit, or cannot happen; with its guard taken out, it does happen."""

import functools
import gc
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from jaxnn.bench import BenchError, Case
from jaxnn.bench.compilation import build
from jaxnn.bench.guards import GUARDS, _without, frozen_gc, watch
from jaxnn.bench.timing import Arm, latin_rounds, run_block

X = jnp.ones((4, 5))
RESULT = jax.ShapeDtypeStruct((), jnp.float32)


def vector(key):
    return (jax.random.normal(key, (8,)),)


def block(function, args=vector, donate=None, calls=3):
    arm = Arm("f", build(Case("f", function, args, donate)), np.random.default_rng(0))
    arm.calls = calls
    return run_block(arm, 0, 0, 0)


def on_host(work):
    """A traceable function of a vector whose only cost is `work()` on the host, in order."""

    def host(x):
        work()
        return np.float32(x.sum())

    return lambda x: io_callback(host, RESULT, x, ordered=True)


# ---- asynchronous dispatch ----
def test_a_call_lasts_until_its_outputs_are_ready():
    def slow(x):
        return jax.lax.fori_loop(0, 60, lambda _, y: jnp.tanh(y @ y), x)

    def args(key):
        return (jax.random.normal(key, (256, 256)),)

    program = build(Case("slow", slow, args))
    arm = Arm("slow", program, np.random.default_rng(0))
    arm.calls = 1
    with _without("sync"):
        unsynced = min(run_block(arm, 0, 0, 0).calls_ns[0] for _ in range(4))
    synced = min(run_block(arm, 0, 0, 0).calls_ns[0] for _ in range(4))
    assert unsynced < synced / 3


# ---- compilation inside the timing ----
def test_nothing_compiles_inside_the_timing_of_an_ordinary_step():
    assert block(lambda x: x * 2).traces == 0


def test_a_compilation_inside_the_timing_is_an_error():
    with _without("aot", "rewarm"):
        with pytest.raises(BenchError, match=r"compiled .* inside a timed block"):
            block(lambda x: jnp.sin(x) * 2)
        with _without("events"):
            calls = block(lambda x: jnp.sin(x) * 2).calls_ns
    assert calls[0] > 10 * min(calls[1:])


def test_a_jitted_callback_that_compiles_in_the_block_is_an_error():
    sizes = iter(range(1, 100))
    trace = on_host(lambda: jax.make_jaxpr(lambda x: x + 1)(np.zeros(next(sizes))))
    with pytest.raises(BenchError, match="inside a timed block"):
        block(jax.jit(trace))
    with _without("events"):
        assert block(trace).traces > 0


# ---- compile time ----
def test_compile_time_is_not_that_of_a_cache():
    def f(x):
        return jnp.sort(jnp.tanh(x)[::-1])

    jax.jit(f)(*vector(jax.random.key(0)))
    times = build(Case("f", f, vector)).compile
    assert times.compile_s > 1e-3
    assert times.trace_s > 1e-4
    assert times.total_s == times.trace_s + times.lower_s + times.compile_s


def test_a_cached_compilation_is_noticed(tmp_path):
    before = {name: jax.config.values[name] for name in CACHE}
    try:
        for name, value in zip(CACHE, (str(tmp_path), 0, -1)):
            jax.config.update(name, value)
        case = Case("f", lambda x: jnp.cos(x) - 3, (X,))
        first, second = build(case, ask_cache=True), build(case, ask_cache=True)
        assert (first.compile.persistent, second.compile.persistent) == ("miss", "hit")
        for guards, hits in (((), 0), (("cache_off",), 1)):
            with _without(*guards), watch() as seen:
                build(case)
            assert seen.hits == hits
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert jax.config.values["jax_enable_compilation_cache"]


CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def test_caches_in_memory_are_cleared():
    traced = []
    inner = jax.jit(lambda x: (traced.append(1), x + 1)[1])
    inner(X)
    case = Case("f", lambda x: inner(x), lambda key: (X,))
    for guards, times in ((("clear_caches",), 0), ((), 1)):
        with _without(*guards):
            traced.clear()
            build(case)
            assert len(traced) == times


# ---- closed-over arrays ----
def calls(inner):
    return lambda x: inner(x)


def closures():
    table, np_table, key = X + 1, np.arange(6.0, dtype=np.float32), jax.random.key(3)
    params = {"w": X}

    class Model:
        def __init__(self):
            self.weights = {"kernel": X + 2}

        def __call__(self, x):
            return x[0] + self.weights["kernel"]

        def apply(self, x):
            return x[0] + self.weights["kernel"]

    return {
        r"variable 'table', float32\[4, 5\]": lambda x: table * x[0],
        r"variable 'np_table', float32\[6\]": lambda x: np_table * x[0],
        r"global 'X', float32\[4, 5\]": lambda x: X * x[0],
        r"variable 'params' at 'w', float32\[4, 5\]": lambda x: params["w"] * x[0],
        r"variable 'key', key<": lambda x: jax.random.normal(key, x.shape) + x,
        r"argument 0 of functools.partial, float32\[4, 5\]": functools.partial(lambda w, x: w * x[0], X),
        r"weights.*'kernel'.*, float32\[4, 5\]": Model(),
        r"self.weights\['kernel'\], float32\[4, 5\]": Model().apply,
        r"default of 'w', float32\[4, 5\]": lambda x, w=X: w * x[0],
        r"variable 'inner'.*'table'.*float32\[4, 5\]": (lambda inner: lambda x: inner(x))(
            jax.jit(lambda x: table * x[0])
        ),
    }


@pytest.mark.parametrize("message", list(closures()))
def test_a_closed_over_array_is_named(message):
    with pytest.raises(BenchError, match=message) as error:
        build(Case("f", closures()[message], vector))
    assert "args=" in str(error.value)


def test_a_folded_product_costs_nothing_without_the_guard():
    a = jax.random.normal(jax.random.key(0), (400, 400))

    def folded(x):
        return jnp.sum(a @ a) + x

    def honest(x, a):
        return jnp.sum(a @ a) + x

    with _without("constants"):
        cheap = min(block(folded).calls_ns)
    dear = min(block(honest, lambda key: (*vector(key), a.copy())).calls_ns)
    assert cheap < dear / 3


def test_scalars_and_tables_of_its_own_are_allowed():
    rate = jnp.float32(0.1)
    build(Case("f", lambda x: x * rate + np.arange(8, dtype=np.float32), vector))


# ---- dead code ----
def test_a_function_without_an_array_is_an_error():
    with pytest.raises(BenchError, match="returns no array"):
        build(Case("f", lambda x: None, vector))
    with pytest.raises(BenchError, match="no output depends on an argument"):
        build(Case("f", lambda x: jnp.sum(jnp.ones((9, 9)) @ jnp.ones((9, 9))), vector))
    with _without("dead_code"):
        build(Case("f", lambda x: None, vector))


def test_an_unused_argument_is_noted():
    program = build(Case("f", lambda x, y: {"a": x + 1}, lambda key: (*vector(key), {"z": X})))
    assert program.notes == ("args[1]/z float32[4, 5] is not used",)


# ---- donation ----
def state(key):
    return {"w": jax.random.normal(key, (8,)), "n": jnp.zeros((), jnp.int32)}, jnp.ones((8,))


def test_threaded_outputs_are_the_next_arguments():
    seen = []

    def step(s, b):
        value = io_callback(lambda n: (seen.append(int(n)), np.float32(0))[1], RESULT, s["n"], ordered=True)
        return {"w": s["w"] + b, "n": s["n"] + 1}, value

    arm = Arm("step", build(Case("step", step, state, "thread")), np.random.default_rng(0))
    assert arm.program.flow == ((0,), 1, False)
    seen.clear()
    arm.calls = 4
    run_block(arm, 0, 0, 0)
    run_block(arm, 0, 0, 0)
    assert seen == [0, 1, 2, 3, 4] * 2  # each block begins anew: every arm does the same work
    assert not arm.program.args[0]["w"].is_deleted()


def test_donated_numbers_are_given_fresh_copies():
    found = block(lambda x: x + 1, donate=0, calls=5)
    assert len(found.calls_ns) == 5


def test_donation_that_cannot_be_is_an_error_that_names_the_leaf():
    def grows(s, b):
        return {"w": jnp.concatenate([s["w"], b]), "n": s["n"]}, b

    with pytest.raises(BenchError, match=r"args\[0\]: w: float32\[8\] against float32\[16\]"):
        build(Case("f", grows, state, "thread"))
    with pytest.raises(BenchError, match=r"no output has the structure .* n: int32\[\] is only in the first"):
        build(Case("f", lambda s, b: ({"w": s["w"]}, b), state, "thread"))
    with pytest.raises(BenchError, match=r"float32\[8\] cannot be reused"):
        build(Case("f", lambda x: x.sum(), vector, 0))
    with pytest.raises(BenchError, match=r"names arguments \[3\], but there are 1"):
        build(Case("f", lambda x: x, vector, 3))
    x = jnp.ones(3)
    with pytest.raises(BenchError, match=r"args\[0\]/a and args\[1\] are one array, float32\[3\]"):
        build(Case("f", lambda s, y: ({"a": s["a"] + y}, y), ({"a": x}, x), "thread"))
    with _without("aliases"):
        block(lambda x, y: (x + y, y), (x, x), (0, 1))  # bench's copies would hide what fails in a real loop


def test_a_step_that_donates_by_itself_is_an_error():
    step = jax.jit(lambda s: {"w": s["w"] + 1}, donate_argnums=0)
    with pytest.raises(BenchError, match="jitted with donation"):
        build(Case("f", step, lambda key: ({"w": X},)))
    with _without("donation"):
        build(Case("f", step, lambda key: ({"w": X},)))
    build(Case("f", step, lambda key: ({"w": X},), "thread"))


# ---- arguments ----
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (lambda key: ({"a": [np.ones((2, 3))]},), r"args\[0\]/a/0 is float64\[2, 3\] on the host \(ndarray\)"),
        (lambda key: (X, 2.0), r"args\[1\] is float 2.0 on the host"),
        (lambda key: (X, "mean"), r"args\[1\] is str 'mean', no array"),
    ],
)
def test_an_argument_on_the_host_is_named(args, message):
    with pytest.raises(BenchError, match=message):
        build(Case("f", lambda x, *rest: x, args))


def test_a_copy_from_the_host_is_caught_in_the_call_too():
    program = build(Case("f", lambda x: x + 1, vector))
    host = (np.ones(8, np.float32),)
    arm = Arm("f", program, np.random.default_rng(0))
    arm.arguments = lambda: [host]
    with pytest.raises(BenchError, match="a call copied an argument from the host"):
        run_block(arm, 0, 0, 0)
    with _without("transfers"):
        run_block(arm, 0, 0, 0)


def test_arguments_are_a_tuple():
    with pytest.raises(TypeError, match="not a tuple"):
        build(Case("f", lambda x: x, lambda key: jnp.ones(3)))
    with pytest.raises(TypeError, match=r"\(x,\) for one"):
        build(Case("f", lambda x: x, [jnp.ones(3)]))


# ---- retraces ----
def test_a_weak_type_that_would_retrace_is_named():
    def step(s):
        return {"n": s["n"] + jnp.int32(1)}

    def weak(key):
        return ({"n": jnp.asarray(0)},)

    with pytest.raises(BenchError, match=r"call 2 would retrace: args\[0\]/n: int32\[\] weak-typed, then not weak"):
        build(Case("f", step, weak, "thread"))
    with _without("retrace"):
        assert build(Case("f", step, weak, "thread")).compile.retraces == 1
    assert build(Case("f", step, lambda key: ({"n": jnp.int32(0)},), "thread")).compile.retraces == 0


def test_arguments_that_change_shape_are_named():
    lengths = iter((8, 9) * 5)

    def ragged(key):
        return ({"x": jnp.ones(next(lengths))},)

    with pytest.raises(BenchError, match=r"call 3 would retrace: args\[0\]/x: float32\[8\], then float32\[9\]"):
        build(Case("f", lambda b: b["x"] * 2, ragged))
    with _without("retrace"):
        assert build(Case("f", lambda b: b["x"] * 2, ragged)).compile.retraces == 1


def test_an_output_that_moves_to_other_devices_is_named(devices8):
    mesh = jax.sharding.Mesh(np.array(devices8), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def step(x):
        return jax.lax.with_sharding_constraint(x + 1, spread)

    x = jax.device_put(jnp.ones(8), whole)
    with pytest.raises(BenchError, match=r"args\[0\] float32\[8\] comes in as .* the second call would compile again"):
        build(Case("f", step, (x,), "thread"))


# ---- garbage, warming, order, copies ----
def test_no_garbage_collection_in_a_block():
    def litter():
        for _ in range(3000):
            a: list = []
            a.append(a)

    seen = []
    gc.callbacks.append(lambda phase, info: seen.append(phase))
    try:
        step = on_host(litter)
        arm = Arm("f", build(Case("f", step, vector)), np.random.default_rng(0))
        for guards, expected in (((), False), (("gc",), True)):
            with _without(*guards), frozen_gc():
                seen.clear()
                run_block(arm, 0, 0, 0)
                assert bool(seen) is expected
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_the_first_call_after_another_program_is_not_timed():
    last = [""]

    def cold(name):
        def work():
            if last[0] != name:
                time.sleep(0.05)
            last[0] = name

        return on_host(work)

    arms = [Arm(n, build(Case(n, cold(n), vector)), np.random.default_rng(0)) for n in ("a", "b")]
    arms[0].calls = arms[1].calls = 2
    run_block(arms[0], 0, 0, 0)
    assert max(run_block(arms[i], 0, 0, 0).calls_ns[0] for i in (1, 0)) < 45e6
    with _without("rewarm"):
        assert min(run_block(arms[i], 0, 0, 0).calls_ns[0] for i in (1, 0)) > 45e6


def test_arms_share_no_executable():
    def f(x):
        return jnp.exp(x)

    def compiled():
        return [build(Case("f", f, vector)) for _ in range(2)]

    a, b = compiled()
    assert a.compiled.runtime_executable() is not b.compiled.runtime_executable()
    assert a.compile.program == b.compile.program
    with _without("separate", "clear_caches", "cache_off"), watch() as seen:
        compiled()
    with watch() as apart:
        compiled()
    assert apart.traces.count("arm") >= 2
    assert "arm" not in seen.traces


def test_orders_are_latin_squares():
    for arms in (2, 3, 4):
        rounds = latin_rounds(arms, np.random.default_rng(1))
        squares = [[next(rounds) for _ in range(arms)] for _ in range(20)]
        for square in squares:
            for place in range(arms):
                assert sorted(row[place] for row in square) == list(range(arms))
                assert sorted(square[place]) == list(range(arms))
        assert len({str(square) for square in squares}) > 1
    with _without("order"):
        rounds = latin_rounds(3, np.random.default_rng(1))
        assert [next(rounds) for _ in range(3)] == [[0, 1, 2]] * 3


def test_arguments_move_between_rounds():
    arm = Arm("f", build(Case("f", lambda x: x + 1, lambda key: (jnp.ones(5000),))), np.random.default_rng(0))
    kept = [arm.arguments() for _ in range(9)]
    assert len({a[0][0].unsafe_buffer_pointer() for a in kept}) >= 3
    with _without("placement"):
        kept = [arm.arguments() for _ in range(9)]
    assert len({a[0][0].unsafe_buffer_pointer() for a in kept}) == 1


def test_every_guard_is_taken_out_by_a_test_here():
    import pathlib

    text = pathlib.Path(__file__).read_text()
    assert {name for name in GUARDS if f'"{name}"' not in text} == set()
    with pytest.raises(BenchError, match="no guard is called"), _without("synk"):
        pass
