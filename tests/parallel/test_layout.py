"""How leaves are split: by strict rules, by the largest axis that divides, never along layers that are stacked."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxnn import core, losses, models, optim, parallel, tree
from jaxnn.core.state import abstract
from jaxnn.models import bert, rnn, seq2seq, transformer
from jaxnn.parallel import layout
from tests.parallel.strategies import SPLIT

PARAMS = {
    "embed": np.zeros((50, 16), np.float32),
    "qkv": {"kernel": np.zeros((16, 48), np.float32), "bias": np.zeros(48, np.float32)},
    "odd": np.zeros((7, 9), np.float32),
}


def test_the_largest_axis_that_divides_is_split():
    specs = layout.split_params(PARAMS, {}, "data", 8, 1)
    assert specs == {"embed": P(None, "data"), "qkv/kernel": P(None, "data"), "qkv/bias": P("data"), "odd": P()}
    assert layout.split_params(PARAMS, {}, "data", 5, 1)["embed"] == P("data")
    assert layout.split_params(PARAMS, {}, "data", 1, 1)["embed"] == P()
    small = layout.split_params(PARAMS, {}, "data", 8, 100)
    assert small["qkv/bias"] == P()
    assert small["embed"] == P(None, "data")
    beside = layout.split_params(PARAMS, {"qkv/kernel": P(None, "model")}, "data", 8, 1)
    assert beside["qkv/kernel"] == P("data", "model")


def test_axes_that_stack_layers_are_left_whole():
    params = {"blocks/kernel": np.zeros((64, 16, 8), np.float32)}
    assert layout.split_params(params, {}, "data", 8, 1)["blocks/kernel"] == P("data")
    with tree.declaring(lambda: {"blocks/kernel": tree.Role("matrix", 1)}):
        assert layout.split_params(params, {}, "data", 8, 1)["blocks/kernel"] == P(None, "data")
        # A layer has 128 elements, whatever their number.
        assert layout.split_params(params, {}, "data", 8, 129)["blocks/kernel"] == P()


def test_rules_leave_stacked_axes_to_layers(devices8):
    mesh = parallel.mesh({"data": 4, "model": 2})
    params = {"blocks/qkv/kernel": np.zeros((3, 16, 48)), "norm/scale": np.zeros(16)}
    declared = {"blocks/qkv/kernel": tree.Role("matrix", 1), "norm/scale": tree.Role("vector")}
    rules = {"qkv/kernel": P(None, "model"), "role:vector": P()}
    with tree.declaring(lambda: declared):
        found = layout.matched(params, rules, mesh, "x")
    assert found == {"blocks/qkv/kernel": P(None, None, "model"), "norm/scale": P()}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"qkv": P(None, "model")},
            r"x: no rule matches leaf 'embed' \(50, 16\) \(role embedding\). Tried: qkv",
        ),
        (
            {"qkv/bias": P(None, "model"), ".": P()},
            r"x: .* has 2 entries for leaf 'qkv/bias' \(48,\). Give",
        ),
        ({".": P("expert")}, r"x: the rule for leaf 'embed' names the mesh axis 'expert'. Tried: data, model. Write"),
        (
            {"odd": P("model"), ".": P()},
            r"x: leaf 'odd' \(7, 9\) does not divide by its rule .*: 7 over 2 devices of 'model'. Choose a size",
        ),
        (
            {"embed": P(("data", "model")), ".": P()},
            r"x: leaf 'embed' \(50, 16\) .*: 50 over 8 devices of \('data'",
        ),
    ],
)
def test_rules_are_strict(rules, message, devices8):
    with pytest.raises(ValueError, match=message):
        layout.matched(PARAMS, rules, parallel.mesh({"data": 4, "model": 2}), "x")


def test_what_an_optimizer_keeps_follows_its_parameter(devices8):
    strategy = parallel.zero(3, min_size=1)
    tx = optim.stages(clip=optim.clip_by_global_norm(1.0), adam=optim.adamw_core(), lr=optim.scale_by_lr(1e-3))
    shapes = jax.eval_shape(tx.init, PARAMS)
    zero = jax.ShapeDtypeStruct((), np.int32)
    specs = strategy.state_specs(core.State(zero, zero, PARAMS, {}, shapes, zero))
    by_path = {
        tree.path_name(path): spec
        for path, spec in jax.tree_util.tree_leaves_with_path(specs.opt_state, is_leaf=lambda x: isinstance(x, P))
    }
    for name, spec in strategy.param_specs(PARAMS).items():
        for moment in ("mu", "nu"):
            (found,) = [value for path, value in by_path.items() if path.endswith(f"{moment}/{name}")]
            assert found == spec
    assert all(spec == P() for path, spec in by_path.items() if "/mu/" not in path and "/nu/" not in path)


@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp"])
def test_factored_states_are_split_too(name, devices8):
    """Adafactor's rows and columns have no parameter's shape."""
    task = core.supervised(models.MLP((256, 8)), losses.mse)
    batch = core.state.complete({"x": np.ones((8, 256), np.float32), "y": np.ones((8, 8), np.float32)})
    strategy, tx = SPLIT[name]("mlp", None), optax.adafactor(1e-2)
    state = core.init_state(task, tx, batch, strategy=strategy)
    rows = [x for path, x in tree.leaves_by_path(state.opt_state).items() if path.endswith("v_row/hidden_0/kernel")]
    assert [row.addressable_shards[0].data.shape for row in rows] == [(32,)]
    before = abstract(state)
    state, _ = core.make_train_step(task, tx, strategy=strategy)(state, batch)
    assert abstract(state) == before


def test_meshes(devices8):
    assert dict(parallel.mesh({"data": -1, "model": 2}).shape) == {"data": 4, "model": 2}
    assert parallel.mesh({"data": 2}, devices8[2:4]).devices.tolist() == devices8[2:4]
    with pytest.raises(ValueError, match=r"parallel.mesh: axes .* for 8 devices. Tried: sizes that multiply to 8"):
        parallel.mesh({"data": 3, "model": 2})
    with pytest.raises(ValueError, match=r"for 8 devices. Tried: sizes that multiply to 8"):
        parallel.mesh({"data": -1, "model": 3})
    with pytest.raises(ValueError, match="at most one of them -1"):
        parallel.mesh({"data": -1, "model": -1})
    with pytest.raises(ValueError, match=r"parallel.tensor: axes .*'model': 3"):
        parallel.tensor(models.gpt.RULES, model=3)


def test_strategies_by_name(devices8):
    assert parallel.by_name("zero2", 4).stage == 2
    assert parallel.by_name("fsdp", 2).shards == 2
    made = parallel.by_name("fsdp_tensor", None, models.gpt.RULES)
    assert dict(made.mesh.shape) == {"data": 4, "model": 2}
    assert dict(parallel.by_name("tensor", 4, models.gpt.RULES).mesh.shape) == {"data": 1, "model": 4}
    with pytest.raises(ValueError, match=r"by_name: 'tensor' splits layers by rules, and this program passes none"):
        parallel.by_name("tensor", 4)
    with pytest.raises(ValueError, match=r"by_name: 'zero' is unknown. Tried: single, .*zero3, fsdp, tensor"):
        parallel.by_name("zero")
    with pytest.raises(ValueError, match=r"parallel.zero: stage=0. Tried: 1, 2, 3"):
        parallel.zero(0)


def test_a_batch_must_divide_over_the_groups_only(devices8):
    task = core.supervised(models.MLP((16, 2)), losses.mse)
    tx, strategy = optax.sgd(0.1), parallel.tensor(models.mlp.RULES, model=4)
    batch = {"x": np.ones((6, 3), np.float32), "y": np.ones((6, 2), np.float32)}
    state = core.init_state(task, tx, batch, strategy=strategy)
    step = core.make_train_step(task, tx, strategy=strategy)
    state, _ = step(state, batch)
    assert int(state.step) == 1
    with pytest.raises(ValueError, match=r"5 examples does not divide over 2 groups of devices. Use a multiple of 2"):
        step(state, {name: x[:5] for name, x in batch.items()})


def test_a_model_that_its_rules_do_not_divide_is_refused_before_anything_is_compiled(devices8):
    task = core.supervised(models.MLP((15, 2)), losses.mse)
    batch = {"x": np.ones((8, 3), np.float32), "y": np.ones((8, 2), np.float32)}
    with pytest.raises(ValueError, match=r"parallel.tensor: leaf 'hidden_0/bias' \(15,\) does not divide"):
        core.init_state(task, optax.sgd(0.1), batch, strategy=parallel.tensor(models.mlp.RULES, model=2))


def test_the_summary_counts_what_devices_hold(devices8):
    task = core.supervised(models.GPT(CONFIG), losses.cross_entropy)
    tokens = np.ones((8, 8), np.int32)
    for strategy in (parallel.zero(1), parallel.zero(3), parallel.tensor(models.gpt.RULES, model=2, fsdp=True)):
        state = core.init_state(task, optax.adamw(1e-3), {"x": tokens, "y": tokens}, strategy=strategy)
        found = parallel.summary(strategy, abstract(state))
        held = {path: x.addressable_shards[0].data.nbytes for path, x in tree.leaves_by_path(state).items()}
        assert {leaf.path: leaf.held for leaf in found.leaves} == held
        assert found.nbytes == tree.nbytes(state)
    text = str(parallel.summary(parallel.zero(3), state))
    assert "params/blocks_0/qkv/kernel" in text
    assert text.splitlines()[-1].split()[-1] == f"{parallel.summary(parallel.zero(3), state).held:,}"
    assert {leaf.path for leaf in found.whole} >= {"step", "params/norm_out/scale"}
    alone = parallel.summary(parallel.single(), state)
    assert alone.held == alone.nbytes


CONFIG = models.GPTConfig(vocab=64, length=8, layers=1, heads=2, width=64)


TOKENS = np.ones((2, 4), np.int32)
FAMILIES = {
    "bert": (models.BERT(models.BERTConfig(vocab=16, length=8, layers=1, heads=2, width=8, mlp_width=16)), (TOKENS,)),
    "t5": (
        models.Transformer(models.TransformerConfig(16, width=8, heads=2, layers=1, hidden=16, gated=True, tied=False)),
        (TOKENS, TOKENS),
    ),
    "marian": (
        models.Transformer(models.TransformerConfig(16, layout="marian", width=8, heads=2, layers=1, hidden=16)),
        (TOKENS, TOKENS),
    ),
    "seq2seq": (models.Seq2Seq(models.Seq2SeqConfig(16, embed=8, width=8, attention=8)), (TOKENS, TOKENS)),
    "rnn": (models.RNN(models.GRUCell(4), bidirectional=True), (np.ones((2, 3, 8), np.float32),)),
}
RULES = {
    "bert": bert.RULES,
    "t5": transformer.RULES,
    "marian": transformer.RULES,
    "seq2seq": seq2seq.RULES,
    "rnn": rnn.RULES,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_rules_of_a_family_match_its_parameters_and_change_no_output(name, devices8):
    module, arguments = FAMILIES[name]
    mesh = parallel.mesh({"data": 4, "model": 2})
    params = jax.jit(lambda key: module.init({"params": key}, *arguments)["params"])(jax.random.key(0))
    specs = layout.matched(params, RULES[name], mesh, "x")
    split = [path for path, spec in specs.items() if spec != P()]
    tables = sum(path.endswith(("embedding", "kernel")) for path in specs)
    assert len(split) >= {"seq2seq": 1, "rnn": 0}.get(name, tables // 2)
    shardings = {path: jax.NamedSharding(mesh, spec) for path, spec in specs.items()}
    placed = tree.map_by_path(lambda path, x: jax.device_put(x, shardings[path]), params)
    apply = jax.jit(lambda p: module.apply({"params": p}, *arguments))
    for a, b in zip(jax.tree.leaves(apply(params)), jax.tree.leaves(apply(placed))):
        np.testing.assert_allclose(b, a, atol=1e-5)
