"""Collectives of real programs on eight devices, and of HLO texts that this machine's XLA does not write."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jaxnn import cost
from jaxnn.cost import hlo
from jaxnn.cost.collectives import _mesh_groups, iota


@functools.cache
def mesh():
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def manual(f, *args):
    f = jax.shard_map(f, mesh=mesh(), in_specs=P(), out_specs=P(), check_vma=False)
    return cost.of(jax.jit(f), *args).collectives


def seen(found):
    return [(c.kind, c.axes, c.count, c.trip, c.bytes, c.group) for c in found]


def test_a_tree_is_reduced_by_one_variadic_all_reduce():
    tree = {"a": jnp.ones((4, 4)), "b": jnp.ones(3), "c": jnp.ones((), jnp.int32)}
    found = manual(lambda t: lax.psum(t, ("data", "model")), tree)
    reduces = [c for c in found if c.kind == "all-reduce"]
    assert reduces == list(found)
    assert sum(c.total_bytes for c in reduces) == 4 * (16 + 3 + 1)
    floats = manual(lambda t: lax.psum(t, "data"), {"a": jnp.ones((4, 4)), "b": jnp.ones(3)})
    assert seen(floats) == [("all-reduce", ("data",), 1, 1, 4 * 19, 2)]


def test_kinds_axes_and_bytes():
    x = jnp.ones((8, 4))
    rows, columns = [(0, 1), (1, 0)], [(i, (i + 1) % 4) for i in range(4)]
    for f, expected in [
        (lambda x: lax.psum(x, "model"), ("all-reduce", ("model",), 1, 1, 128, 4)),
        (lambda x: lax.psum(x, ("data", "model")), ("all-reduce", ("data", "model"), 1, 1, 128, 8)),
        (lambda x: lax.psum_scatter(x, "model", tiled=True), ("reduce-scatter", ("model",), 1, 1, 128, 4)),
        (lambda x: lax.all_gather(x, "data"), ("all-gather", ("data",), 1, 1, 256, 2)),
        (lambda x: lax.ppermute(x, "data", rows), ("collective-permute", ("data",), 1, 1, 128, 2)),
        (lambda x: lax.ppermute(x, "model", columns), ("collective-permute", ("model",), 1, 1, 128, 4)),
        (lambda x: lax.all_to_all(x, "model", 0, 1, tiled=True), ("all-to-all", ("model",), 1, 1, 128, 4)),
    ]:
        assert seen(manual(f, x)) == [expected]


def test_loops_multiply():
    def f(x):
        return lax.scan(lambda c, _: (lax.psum(c * 0.5, "model"), None), x, None, length=5)[0]

    assert seen(manual(f, jnp.ones((4, 4)))) == [("all-reduce", ("model",), 1, 5, 64, 4)]

    def nested(x):
        return lax.scan(lambda c, _: (f(c) * 2, None), x, None, length=3)[0]

    (found,) = manual(nested, jnp.ones((4, 4)))
    assert (found.trip, found.total_bytes, found.bounded) == (15, 15 * 64, True)


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    (found,) = manual(
        lambda x: lax.while_loop(lambda x: x[0, 0] < 3, lambda x: lax.psum(x, "model"), x), jnp.ones((4, 4))
    )
    assert (found.trip, found.bounded) == (1, False)
    assert "unknown length" in str(found)


def test_a_branch_is_marked():
    def f(p, x):
        return lax.cond(p, lambda x: lax.psum(x, "model"), lambda x: x * 2, x)

    (found,) = manual(f, True, jnp.ones((4, 4)))
    assert found.conditional
    assert found.axes == ("model",)


def test_pmap_and_partitioned_programs(devices8):
    found = cost.of(jax.pmap(lambda x: lax.psum(x, "i"), axis_name="i"), jnp.ones((8, 16))).collectives
    assert seen(found) == [("all-reduce", ("i",), 1, 1, 64, 8)]
    x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh(), P("data")))
    summed = cost.of(jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(mesh(), P())), x).collectives
    assert seen(summed) == [("all-reduce", ("data",), 1, 1, 16, 2)]


def test_no_collectives_on_one_device():
    assert cost.of(lambda x: x @ x, jnp.ones((4, 4))).collectives == ()


TEXT = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: bf16[16,2]) -> bf16[4,2] {
  %p = bf16[16,2]{1,0} parameter(0)
  ROOT %rs = bf16[4,2]{1,0} reduce-scatter(%p), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}

%condition (s: (s32[], f32[4])) -> pred[] {
  %s = (s32[], f32[4]{0}) parameter(0)
  %bound = s32[] constant(12)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %v = f32[4]{0} get-tuple-element(%s), index=1
  %send = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%v), source_target_pairs={{0,1},{1,0}}
  %sent = f32[4]{0} collective-permute-done(%send)
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %sent)
}

ENTRY %main (x: f32[4], y: bf16[16,2], z: f32[2,2]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %y = bf16[16,2]{1,0} parameter(1)
  %z = f32[2,2]{1,0} parameter(2)
  %both = (f32[4], f32[2,2]) all-reduce-start(f32[4] %x, f32[2,2] %z), replica_groups=[4,2]<=[2,4]T(1,0)
  %reduced = (f32[4]{0}, f32[2,2]{1,0}) all-reduce-done(%both)
  %r = f32[4]{0} get-tuple-element(%reduced), index=0
  %gather = (f32[4]{0}, f32[16]{0}) all-gather-start(%r), replica_groups={{0,1,2,3},{4,5,6,7}}, metadata={op_name="f"}
  %gathered = f32[16]{0} all-gather-done(%gather)
  %scatter = ((bf16[16,2]{1,0}), bf16[4,2]{1,0}) async-start(%y), calls=%wrapped
  %scattered = bf16[4,2]{1,0} async-done(%scatter), calls=%wrapped
  %everyone = f32[4]{0} all-reduce(%r), replica_groups={}, to_apply=%add
  %zero = s32[] constant(0)
  %start = s32[] copy(%zero)
  %init = (s32[], f32[4]{0}) tuple(%start, %everyone)
  %loop = (s32[], f32[4]{0}) while(%init), condition=%condition, body=%body
  ROOT %result = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def test_async_pairs_iota_groups_and_constant_compares():
    found = {c.kind + str(c.group): c for c in cost.collectives(TEXT, mesh())}
    expected = {
        "all-reduce2": (("data",), 1, 1, 32, 2),
        "all-reduce8": (("data", "model"), 1, 1, 16, 8),
        "all-gather4": (("model",), 1, 1, 64, 4),
        "reduce-scatter4": (("model",), 1, 1, 64, 4),
        "collective-permute2": (("model",), 1, 6, 16, 2),
    }
    # async-done names the wrapped computation again: it must not count twice.
    assert {name: (c.axes, c.count, c.trip, c.bytes, c.group) for name, c in found.items()} == expected
    assert found["all-gather4"].scope == "f"
    without = {c.kind: c.axes for c in cost.collectives(TEXT)}
    assert set(without.values()) == {None}


def test_groups_by_mesh_axis_names():
    text = TEXT.replace("replica_groups={{0,1,2,3},{4,5,6,7}}", "replica_groups=mesh['x'=2,'y'=2,'z'=2] {'y','z'}")
    (gather,) = (c for c in cost.collectives(text) if c.kind == "all-gather")
    assert (gather.axes, gather.group, gather.bytes) == (("y", "z"), 4, 64)
    (gather,) = (c for c in cost.collectives(text, mesh()) if c.kind == "all-gather")
    assert gather.axes == ("model",)  # the caller's mesh names the same groups better
    part = TEXT.replace("replica_groups={{0,1,2,3},{4,5,6,7}}", "replica_groups=mesh['x'=8] {'x':(2)4}")
    (gather,) = (c for c in cost.collectives(part, mesh()) if c.kind == "all-gather")
    assert (gather.axes, gather.group, gather.bytes) == (("model",), 4, 64)
    (gather,) = (c for c in cost.collectives(part) if c.kind == "all-gather")
    assert (gather.axes, gather.group) == (None, 4)


def test_a_mesh_in_the_text_may_order_its_devices():
    for order, groups in [
        ("", [(0, 1), (2, 3)]),
        ("[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("3,2,0,1", [(3, 2), (0, 1)]),
    ]:
        assert _mesh_groups("'x'=2,'y'=2", order, "{'y'}") == (("y",), groups)
    assert _mesh_groups("'x'=8", "", "{'x':(1)2,'x':(4)2}") == (None, [(0, 1, 4, 5), (2, 3, 6, 7)])
    assert _mesh_groups("'axis_0'=2,'axis_1'=2", "", "{'axis_0'}") == (None, [(0, 2), (1, 3)])
    text = TEXT.replace("{{0,1,2,3},{4,5,6,7}}", "mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}")
    (gather,) = (c for c in cost.collectives(text, mesh()) if c.kind == "all-gather")
    assert (gather.axes, gather.group) == (("y",), 4)  # 0, 2, 4, 6: no axis of our mesh


def test_a_start_that_steps_by_a_variable_is_unknown():
    text = TEXT.replace("%two = s32[] constant(2)", "%two = s32[] parameter(1)")
    (permute,) = (c for c in cost.collectives(text) if c.kind == "collective-permute")
    assert (permute.trip, permute.bounded) == (1, False)


def test_iota_groups():
    assert iota("[2,4]<=[8]").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert iota("[4,2]<=[2,4]T(1,0)").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    with pytest.raises(ValueError, match="aren't understood"):
        iota("[2,4]<=")


def test_bytes_of_types():
    assert hlo.nbytes("(f32[2,3]{1,0}, bf16[4], pred[], token[], s4[3])") == 24 + 8 + 1 + 2
    assert hlo.nbytes("f8e4m3fn[7]") == 7
    with pytest.raises(ValueError, match="q7"):
        hlo.nbytes("q7[3]")


def test_what_is_not_hlo_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        cost.collectives("module @jit_f {}")
