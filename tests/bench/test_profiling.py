"""Device time by run: known sleeps and loops, several devices, and traces of accelerators written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.profiler import ProfileData
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnn.bench import BenchError, Case, origins, profiling
from jaxnn.bench.compilation import build


def loop(x, trips):
    with jax.named_scope("spin"):
        return jax.lax.fori_loop(0, trips, lambda _, y: jnp.tanh(y @ x), x)


def looped(trips):
    x = jnp.full((128, 128), 1e-3)
    compiled = jax.jit(loop).lower(x, jnp.int32(1)).compile()
    count = jnp.int32(trips)
    return compiled, lambda: compiled(x, count)


def test_device_time_follows_the_work_and_stays_below_the_wall():
    short, long = (profiling.device_times(looped(trips)[1], 6) for trips in (10, 200))
    assert short.devices == (0,)
    assert len(long.wall_s) == len(long.span_s) == 6
    assert min(long.span_s)[0] > 4 * min(short.span_s)[0]  # the least disturbed of each
    assert long.device_s >= min(long.span_s)[0]
    for call, wall in zip(long.span_s, long.wall_s):
        assert 0 < call[0] <= wall
    assert short.skew == 0
    assert "device" in str(long)


def test_a_sleep_between_two_runs_is_wall_time_but_not_device_time():
    import time

    _, run = looped(5)

    def call():
        run().block_until_ready()
        time.sleep(0.05)
        return run()

    found = profiling.device_times(call, 2)
    assert min(found.wall_s) > 0.05
    assert found.device_s < 0.05 - 0.01  # a span over both runs would hold the sleep


def test_several_devices_each_have_their_own_time(devices8):
    mesh = Mesh(np.array(devices8[:4]), ("d",))
    x = jax.device_put(jnp.ones((64, 64)), NamedSharding(mesh, PartitionSpec("d")))
    compiled = jax.jit(lambda x: jnp.sum(jnp.tanh(x @ x.T))).lower(x).compile()
    found = profiling.device_times(lambda: compiled(x), 2)
    assert found.devices == (0, 1, 2, 3)
    assert np.asarray(found.span_s).shape == (2, 4)
    assert np.all(np.asarray(found.busy_s) <= np.asarray(found.span_s) * 1.001)
    assert 0 <= found.skew <= 1
    assert "4 devices" in str(found)


@pytest.mark.parametrize("donate", [None, 0, "thread"])
def test_a_case_is_threaded_and_donated_as_bench_does(donate):
    case = Case("step", lambda s, x: (s + x, x.sum()), lambda key: (jnp.ones(64), jnp.ones(64)), donate)
    found = profiling.of_program(build(case), 3)
    assert found.device_s > 0


def test_the_table_of_operations_knows_lines_layers_and_stages(tmp_path):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))

    def step(p, s, x):
        def loss(p):
            with jax.named_scope("head"):
                return jnp.mean(jnp.tanh(x @ p["w"]) ** 2)

        updates, s = tx.update(jax.grad(loss)(p), s, p)
        return optax.apply_updates(p, updates), s

    p, x = {"w": jnp.ones((32, 32))}, jnp.ones((256, 32))
    s = tx.init(p)
    compiled = jax.jit(step).lower(p, s, x).compile()
    with jax.profiler.trace(tmp_path):
        for _ in range(3):
            jax.block_until_ready(compiled(p, s, x))
    rows = profiling.op_table(tmp_path, [compiled])
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert all(row.count % 3 == 0 and row.seconds > 0 and row.module == "jit_step" for row in rows)
    assert {row.origin.layer for row in rows} >= {"head"}
    assert {row.origin.phase for row in rows} >= {"forward", "backward"}
    assert {"scale_by_adam", "clip_by_global_norm"} & {row.origin.stage for row in rows}
    assert any("test_profiling.py" in row.origin.source for row in rows)
    bare = profiling.op_table(tmp_path)
    assert [row.op for row in bare] == [row.op for row in rows]
    assert all(row.origin == origins.Origin() for row in bare)


def test_a_loop_is_not_counted_twice(tmp_path):
    compiled, run = looped(50)
    run().block_until_ready()
    with jax.profiler.trace(tmp_path):
        run().block_until_ready()
    ops, _ = profiling.read(tmp_path)
    outer = next(op for op in ops if op.name.startswith("while"))
    assert outer.self_ns < 0.9 * outer.duration_ns
    rows = profiling.op_table(tmp_path, [compiled])
    assert sum(row.seconds for row in rows) <= 1.2e-9 * max(op.duration_ns for op in ops)
    assert sorted({row.count for row in rows})[-2:] == [50, 51]  # the condition runs once more than the body


def test_a_folder_without_a_trace_and_a_call_that_runs_nothing(tmp_path):
    with pytest.raises(BenchError, match="holds no trace"):
        profiling.op_table(tmp_path)
    with pytest.raises(BenchError, match="no device operations"):
        profiling.device_times(lambda: np.ones(3), 2)
    with pytest.raises(BenchError, match="at least 1"):
        profiling.device_times(lambda: jnp.ones(3), 0)


def xspace(text):
    return ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(text))


CALLS = """
planes { name: "/host:CPU"
  stat_metadata { key: 1 value { id: 1 name: "step_num" } }
  event_metadata { key: 1 value { id: 1 name: "jaxnn.bench.call" } }
  lines { name: "python" timestamp_ns: 0
    events { metadata_id: 1 offset_ps: 0 duration_ps: 1000000 stats { metadata_id: 1 int64_value: 0 } }
    events { metadata_id: 1 offset_ps: 1000000 duration_ps: 1000000 stats { metadata_id: 1 int64_value: 1 } } } }
"""


def test_a_gpu_s_streams_have_no_run_and_belong_to_the_call_they_started_in():
    data = xspace(
        CALLS
        + """
planes { name: "/device:GPU:1"
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }
  event_metadata { key: 1 value { id: 1 name: "gemm" } }
  event_metadata { key: 2 value { id: 2 name: "memcpy" } }
  lines { name: "Stream #7" timestamp_ns: 0
    events { metadata_id: 2 offset_ps: 0 duration_ps: 50000 }
    events { metadata_id: 1 offset_ps: 100000 duration_ps: 200000
      stats { metadata_id: 1 str_value: "fusion.1" } stats { metadata_id: 2 str_value: "jit_f" } }
    events { metadata_id: 1 offset_ps: 1100000 duration_ps: 400000
      stats { metadata_id: 1 str_value: "fusion.1" } stats { metadata_id: 2 str_value: "jit_f" } } } }
"""
    )
    ops, calls = profiling.parse(data)
    assert [(op.name, op.module, op.device) for op in ops] == [("fusion.1", "jit_f", 1)] * 2
    found = profiling.attribute(ops, calls, [1e-6, 1e-6])
    assert found.devices == (1,)
    np.testing.assert_allclose(found.span_s, [[200e-9], [400e-9]])


def test_a_tpu_s_operations_belong_to_the_module_that_ran():
    data = xspace(
        CALLS
        + """
planes { name: "/device:TPU:0"
  stat_metadata { key: 1 value { id: 1 name: "run_id" } }
  event_metadata { key: 1 value { id: 1 name: "jit_f(123)" } }
  event_metadata { key: 2 value { id: 2 name: "%fusion.3 = f32[8] fusion(%p0)" } }
  event_metadata { key: 3 value { id: 3 name: "%all-reduce.1 = f32[8] all-reduce(%fusion.3)" } }
  lines { name: "XLA Modules" timestamp_ns: 0
    events { metadata_id: 1 offset_ps: 100000 duration_ps: 500000 stats { metadata_id: 1 int64_value: 5 } }
    events { metadata_id: 1 offset_ps: 1100000 duration_ps: 500000 stats { metadata_id: 1 int64_value: 6 } } }
  lines { name: "XLA Ops" timestamp_ns: 0
    events { metadata_id: 2 offset_ps: 100000 duration_ps: 100000 }
    events { metadata_id: 3 offset_ps: 200000 duration_ps: 100000 }
    events { metadata_id: 2 offset_ps: 1100000 duration_ps: 300000 } } }
"""
    )
    ops, calls = profiling.parse(data)
    assert [(op.name, op.module, op.run) for op in ops] == [
        ("fusion.3", "jit_f", ("jit_f", 5)),
        ("all-reduce.1", "jit_f", ("jit_f", 5)),
        ("fusion.3", "jit_f", ("jit_f", 6)),
    ]
    found = profiling.attribute(ops, calls, [1e-6, 1e-6])
    np.testing.assert_allclose(found.span_s, [[200e-9], [300e-9]])
    np.testing.assert_allclose(found.busy_s, [[100e-9], [300e-9]])  # the collective is a wait


def test_a_call_without_operations_is_named():
    op = profiling.Op("f", "m", None, 0, 10, 5, 5)
    with pytest.raises(BenchError, match=r"calls \[1\] of 2"):
        profiling.attribute([op], [(0, 20), (20, 40)], [1, 1])


@pytest.mark.parametrize(
    ("stack", "stage"),
    [
        (["step", "chain.<locals>.update_fn", "scale_by_adam.<locals>.update_fn", "tree_sum"], "scale_by_adam"),
        (["/a/b.py:3:4 (clip.<locals>.update_fn.<locals>.<lambda>)"], "clip"),
        (["step", "chain.<locals>.update_fn"], ""),
        (["Trainer.update_fn", "make_update"], ""),
    ],
)
def test_a_stage_is_the_innermost_update_of_a_transformation(stack, stage):
    assert origins.stage_of(stack) == stage
