"""The table of an optimizer, made from shapes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnn import optim, tree
from jaxnn.optim.registry import OPTIMIZERS

PARAMS = {
    "blocks_0": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones((4,))},
    "embedding": jnp.ones((16, 4)),
}


def chain():
    return optim.stages(
        clip=optim.clip_by_global_norm(1.0),
        precondition=optim.groups(
            lion=(optim.role("matrix"), optim.lion_core()), adam=(optim.otherwise, optax.scale_by_adam())
        ),
        lr=optim.scale_by_lr(3e-4),
        metrics=("lr",),
    )


def test_stages_by_groups_with_their_bytes():
    found = optim.summary(chain(), PARAMS)
    rows = {(row.stage, row.group): row for row in found.rows}
    assert list(rows)[:4] == [("clip", ""), ("precondition", "lion"), ("precondition", "adam"), ("lr", "")]
    adam = rows["precondition", "adam"]
    assert (adam.kind, adam.leaves, adam.elements, adam.dtypes) == ("optax.scale_by_adam", 2, 68, ("float32",))
    assert adam.nbytes == 2 * 4 * 68 + 4
    assert rows["precondition", "lion"].hypers == {"b1": 0.9, "b2": 0.99}
    assert found.nbytes == tree.nbytes(chain().init(PARAMS))
    assert found.elements == 100


def test_the_vectors_of_flat_have_a_dtype():
    tx = optim.with_state_dtype(optim.flat(optim.adamw(1e-3)), {"mu": jnp.bfloat16})
    rows = {row.stage: row for row in optim.summary(tx, PARAMS).rows}
    assert rows["adam"].dtypes == ("bfloat16", "float32")
    assert rows["decay"].dtypes == ()


def test_it_prints_the_assignment_and_says_that_roles_are_guesses():
    """optax has nothing of the kind: what a label function or a mask did to which leaf is seen in the losses."""
    text = str(optim.summary(chain(), PARAMS))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "blocks_0/kernel (8, 4) matrix (guess) lion" in lines
    assert "embedding (16, 4) embedding (guess) adam" in lines
    assert "every role is a guess" in text
    declared = {"blocks_0/kernel": tree.Role("head"), "embedding": tree.Role("matrix", 1)}
    with tree.declaring(lambda: declared):
        text = str(optim.summary(chain(), PARAMS))
    assert "1 of 3 roles are guesses" in text
    assert "matrix x1 stacked" in text
    html = optim.summary(chain(), PARAMS)._repr_html_()
    assert html.count("<table>") == 2
    assert "lion" in html


def test_it_prints_schedules_as_they_were_written():
    tx = optim.stages(
        adam=optim.adam_core(b1=lambda step: 0.9),
        decay=optim.decay(optax.linear_schedule(0.1, 0.0, 9)),
        lr=optim.scale_by_lr(optim.warmup(optim.cosine(3e-4, 90), 10)),
    )
    found = {row.stage: row.hypers for row in optim.summary(tx, PARAMS).rows}
    assert found["lr"] == {"lr_multiplier": 1.0, "lr": "warmup(cosine(0.0003, steps=90, end=0), steps=10)"}
    assert (found["adam"]["b1"], found["decay"]["weight_decay"]) == ("schedule", "schedule")  # they do not say
    assert "lr=warmup(cosine(0.0003, steps=90, end=0), steps=10)" in str(optim.summary(tx, PARAMS))


def test_bytes_a_device():
    mesh = {"data": 4}
    specs = optim.state_specs(chain(), PARAMS, zero_axis="data", mesh=mesh)
    found = optim.summary(chain(), PARAMS, specs=specs, mesh=mesh)
    rows = {(row.stage, row.group): row for row in found.rows}
    assert rows["precondition", "adam"].device_nbytes == 2 * 4 * 68 // 4 + 4
    assert "a device" in str(found)
    with pytest.raises(ValueError, match=r"optim.summary: 3 specs for .* leaves of state"):
        optim.summary(chain(), PARAMS, specs=[jax.sharding.PartitionSpec()] * 3, mesh=mesh)


def test_bytes_a_device_are_of_the_mesh_of_the_specs_or_of_the_parameters(devices8):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    tx = chain()
    specs = optim.state_specs(tx, PARAMS, zero_axis="data", mesh=mesh)
    expected = optim.summary(tx, PARAMS, specs=specs, mesh=mesh)
    assert expected.device_nbytes < expected.nbytes
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert optim.summary(tx, PARAMS, specs=shardings) == expected
    placed = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    assert optim.summary(tx, placed, specs=specs).device_nbytes == expected.device_nbytes
    with pytest.raises(ValueError, match=r"summary: specs name the axes \['data'\], and no mesh is known"):
        optim.summary(tx, PARAMS, specs=specs)
    with pytest.raises(ValueError, match=r"summary: specs name the axes \['data'\], and the mesh has \['fsdp'\]"):
        optim.summary(tx, PARAMS, specs=specs, mesh={"fsdp": 4})


def test_it_computes_nothing(count_compiles):
    shapes = {"w": jax.ShapeDtypeStruct((1 << 20, 1 << 12), jnp.float32)}  # 17 GB
    with count_compiles() as seen:
        found = optim.summary(optim.adamw(1e-3), shapes)
    assert found.bytes_per_parameter == pytest.approx(8.0)
    assert not seen.compiles


def test_it_knows_wrapped_stages_and_plain_optax():
    text = str(optim.summary(optax.adam(1e-3), PARAMS))
    assert "optax.chain" in text
    nested = optim.stages(inner=optim.stages(a=optim.adam_core(), b=optax.identity()), lr=optim.scale_by_lr(1.0))
    assert [row.stage for row in optim.summary(nested, PARAMS).rows] == ["inner.a", "inner.b", "lr"]


def test_a_state_may_hold_a_key():
    tx = optim.stages(noise=optax.add_noise(0.1, 0.55, jax.random.key(0)), lr=optim.scale_by_lr(1.0))
    found = optim.summary(tx, PARAMS)
    assert found.nbytes == tree.nbytes(tx.init(PARAMS))
    assert "optax.add_noise" in str(found)


def test_an_init_that_cannot_be_traced_is_computed():
    """Abstract init fails where an optimizer looks at its parameters' values (prodigy, D-Adaptation)."""

    def init(params):
        return {"norm": np.float32(float(optax.tree.norm(params))), "mu": jax.tree.map(jnp.zeros_like, params)}

    tx = optax.GradientTransformation(init, lambda u, s, p=None: (u, s))
    found = optim.summary(tx, PARAMS)
    assert found.computed
    assert "could not be traced" in str(found)
    assert found.nbytes == 4 * 100 + 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_told_whole(name):
    entry = OPTIMIZERS[name]
    tx = entry.make(entry.lr)
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct((p.shape[0], 4), jnp.float32), PARAMS)
    found = optim.summary(tx, params)
    assert found.nbytes == tree.nbytes(jax.eval_shape(tx.init, params))
    assert not found.computed
    assert all(row.kind or row.stage == "metrics" for row in found.rows), str(found)
    specs = optim.state_specs(tx, params, zero_axis="data", mesh={"data": 2})
    assert optim.summary(tx, params, specs=specs, mesh={"data": 2}).device_nbytes <= found.nbytes
