"""GPT against an independent float64 NumPy implementation; causality, packing, layouts, presets and refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import losses, rng, tree
from jaxnn.models import BERT, GPT, BERTConfig, GPTConfig, stack_layers, unstack_layers

SMALL = {"vocab": 11, "length": 12, "layers": 2, "heads": 2, "width": 8, "mlp_ratio": 3}
GPT2 = {**SMALL, "positions": "learned", "activation": "gelu", "norm": "layer", "bias": True}
TOKENS = np.random.default_rng(0).integers(0, 11, size=(3, 9))


def make(**settings) -> tuple[GPT, dict]:
    """A model and parameters large enough for every part to matter."""
    model = GPT(GPTConfig(**{**SMALL, **settings}))
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    generator = np.random.default_rng(1)
    draw = lambda path, s: (generator.normal(size=s.shape) * 0.4 + path.endswith("scale")).astype(np.float32)  # noqa: E731
    return model, tree.map_by_path(draw, shapes)


def numpy_gpt(params: dict, tokens: np.ndarray, c: GPTConfig) -> np.ndarray:
    """The forward pass position by position and head by head, in float64."""
    p = {k: np.asarray(v, np.float64) for k, v in tree.leaves_by_path(params).items()}

    def norm(x, name):
        if c.norm == "rms":
            return x / np.sqrt((x**2).mean() + 1e-6) * p[f"{name}/scale"]
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[f"{name}/scale"] + p.get(f"{name}/bias", 0)

    def dense(x, name):
        return x @ p[f"{name}/kernel"] + p.get(f"{name}/bias", 0)

    def rotate(x, t):
        half = x.size // 2
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * t * 10_000.0 ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag])

    d = c.width // c.heads
    out = np.zeros((*tokens.shape, c.vocab))
    for b, row in enumerate(tokens):
        x = [p["embed/embedding"][token] for token in row]
        if c.positions == "learned":
            x = [x_t + p["position_embed"][t] for t, x_t in enumerate(x)]
        for i in range(c.layers):
            block = f"blocks_{i}"
            qkv = [dense(norm(x_t, f"{block}/norm_attention"), f"{block}/qkv").reshape(c.heads, 3, d) for x_t in x]
            q, k, v = ([heads[:, j].reshape(-1) for heads in qkv] for j in range(3))
            for t in range(len(x)):
                heads = []
                for h in range(c.heads):
                    part = slice(h * d, (h + 1) * d)
                    turn = rotate if c.positions == "rotary" else (lambda y, _: y)
                    scores = [turn(q[t][part], t) @ turn(k[s][part], s) / math.sqrt(d) for s in range(t + 1)]
                    weights = np.exp(scores) / np.exp(scores).sum()
                    heads.append(sum(w * v[s][part] for s, w in enumerate(weights)))
                x[t] = x[t] + dense(np.concatenate(heads), f"{block}/attention_out")
            for t, x_t in enumerate(x):
                y = dense(norm(x_t, f"{block}/norm_mlp"), f"{block}/mlp_in")
                gelu = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
                x[t] = x_t + dense(gelu if c.activation == "gelu" else np.maximum(y, 0) ** 2, f"{block}/mlp_out")
        head = p["embed/embedding"].T if c.tied else p["head/kernel"]
        out[b] = [norm(x_t, "norm_out") @ head for x_t in x]
    return out


@pytest.mark.parametrize("settings", [GPT2, {}, {"tied": False, "heads": 4}, {"norm": "layer", "positions": "learned"}])
def test_logits_are_those_of_the_numpy_implementation(settings):
    model, params = make(**settings)
    logits = jax.jit(model.apply)({"params": params}, TOKENS)
    assert logits.dtype == jnp.float32
    want = numpy_gpt(params, TOKENS, model.config)
    np.testing.assert_allclose(logits, want, atol=2e-5 * np.abs(want).max())
    narrow = GPT(GPTConfig(**{**SMALL, **settings, "matmul_dtype": jnp.bfloat16}))
    got = jax.jit(narrow.apply)({"params": params}, TOKENS)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.1 * np.abs(want).max())


@pytest.mark.parametrize("settings", [GPT2, {}])
def test_gradients_are_the_slopes_of_the_numpy_implementation(settings):
    model, params = make(**settings)
    targets = np.roll(TOKENS, -1, axis=1)

    def numpy_loss(params):
        logits = numpy_gpt(params, TOKENS, model.config)
        return (np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]).mean()

    grads = jax.jit(jax.grad(lambda p: jnp.mean(losses.cross_entropy(model.apply({"params": p}, TOKENS), targets))))(
        params
    )
    generator = np.random.default_rng(2)
    direction = tree.map_by_path(lambda _, x: generator.normal(size=x.shape), params)
    h = 1e-5
    up, down = (jax.tree.map(lambda x, d, s=s: x.astype(np.float64) + s * h * d, params, direction) for s in (1, -1))
    slope = sum(
        np.sum(np.asarray(g, np.float64) * d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction))
    )
    np.testing.assert_allclose(slope, (numpy_loss(up) - numpy_loss(down)) / (2 * h), rtol=1e-4)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_token_changes_no_earlier_logits(dtype):
    model, params = make(matmul_dtype=dtype, length=90)
    tokens = np.random.default_rng(0).integers(0, 11, size=(1, 80))
    changed = tokens.copy()
    changed[0, 70] = (tokens[0, 70] + 1) % 11
    f = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    a, b = np.asarray(f(tokens)), np.asarray(f(changed))
    np.testing.assert_array_equal(a[0, :70], b[0, :70])
    assert np.abs(a[0, 70:] - b[0, 70:]).max(-1).min() > 0


@pytest.mark.parametrize("settings", [{}, GPT2])
def test_packed_documents_give_the_logits_they_give_alone(settings):
    model, params = make(**settings)
    first, second = TOKENS[:1, :4], TOKENS[1:2, :5]
    packed = np.concatenate([first, second], 1)
    segment = np.array([[0] * 4 + [1] * 5])
    position = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    f = jax.jit(lambda tokens, **kw: model.apply({"params": params}, tokens, **kw))
    got = f(packed, segment=segment, position=position)
    want = np.concatenate([f(first), f(second)], 1)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    # Zero influence: another first document leaves the second's logits as they are, to the bit.
    other = np.concatenate([(first + 1) % 11, second], 1)
    np.testing.assert_array_equal(f(other, segment=segment, position=position)[:, 4:], got[:, 4:])


def test_loop_and_scan_give_the_same_outputs_and_gradients_with_dropout():
    loop, params = make(dropout=0.3, scan=False)
    scan = GPT(GPTConfig(**SMALL, dropout=0.3, scan=True))
    stacked = stack_layers(params)
    shapes = jax.eval_shape(scan.init, jax.random.key(0), TOKENS)["params"]
    assert list(tree.differences(stacked, shapes)) == []

    def run(model, params):
        def loss(p):
            logits = model.apply({"params": p}, TOKENS, train=True, rngs={"dropout": jax.random.key(5)})
            return jnp.mean(losses.cross_entropy(logits, TOKENS)), logits

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (loss_a, logits_a), grads_a = run(loop, params)
    (loss_b, logits_b), grads_b = run(scan, stacked)
    np.testing.assert_allclose(logits_a, logits_b, atol=1e-5 * np.abs(logits_a).max())
    np.testing.assert_allclose(loss_a, loss_b, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads_a), jax.tree.leaves(unstack_layers(grads_b)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(a).max()))
    assert (run(GPT(GPTConfig(**SMALL)), params)[0][1] != logits_a).any()


def test_stacking_is_undone_by_unstacking():
    _, params = make()
    back = unstack_layers(stack_layers(params))
    assert list(tree.differences(back, params)) == []
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params)):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="stack_layers: found"):
        stack_layers({"embed": 1})
    with pytest.raises(ValueError, match="unstack_layers: found"):
        unstack_layers(params)


def test_dropout_differs_by_layer_and_site_and_follows_the_examples_index():
    model, params = make(dropout=0.5)
    key = {"dropout": jax.random.key(3)}
    f = jax.jit(
        lambda tokens, index: _under(index, lambda: model.apply({"params": params}, tokens, train=True, rngs=key))
    )
    whole = f(TOKENS, np.arange(3))
    np.testing.assert_allclose(f(TOKENS[[2, 0]], np.array([2, 0])), whole[np.array([2, 0])], atol=1e-5)
    same = np.stack([TOKENS[0]] * 2)
    first, second = f(same, np.array([0, 1]))
    assert (first != second).any()


def _under(index, call):
    with rng.examples(index):
        return call()


@pytest.mark.parametrize(("name", "size"), [("tiny", 115_008), ("small", 1_820_352), ("gpt2", 124_439_808)])
def test_presets_have_their_size(name, size):
    model = GPT(GPTConfig.preset(name))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    assert tree.size(shapes) == size


def test_initial_values_have_gpt2s_scales():
    config = GPTConfig(vocab=500, length=64, layers=8, heads=2, width=64, positions="learned")
    params = jax.jit(GPT(config).init)(jax.random.key(0), TOKENS)["params"]
    stds = {path: float(np.std(leaf)) for path, leaf in tree.leaves_by_path(params).items() if np.ndim(leaf) == 2}
    for path, std in stds.items():
        want = 0.02 / 4 if path.endswith(("attention_out/kernel", "mlp_out/kernel")) else 0.02
        assert std == pytest.approx(want, rel=0.05), path


def test_the_layout_is_chosen_by_depth_but_a_choice_is_kept():
    assert not GPTConfig(layers=4).scanned
    assert GPTConfig(layers=4, scan=True).scanned
    # On CPU the loop is faster at any depth.
    assert GPTConfig(layers=48).scanned == (jax.default_backend() != "cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3, "width": 8}, r"heads=3 do not divide width=8.*\[1, 2, 4\]"),
        ({"heads": 8, "width": 8}, "1 a head"),
        ({"layers": 0}, "layers=0"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"positions": "sine"}, "positions='sine'"),
        ({"activation": "relu"}, "activation='relu'"),
    ],
)
def test_bad_settings_are_refused_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**settings)


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match=r"'huge' is unknown.* tiny, small, gpt2"):
        GPTConfig.preset("huge")
    assert GPTConfig.preset("tiny", layers=3).layers == 3


def test_bad_tokens_are_refused_while_tracing():
    model = GPT(GPTConfig(**GPT2))
    for shape, dtype, error, message in [
        ((1, 13), np.int32, ValueError, "13 tokens for 12 learned positions"),
        ((5,), np.int32, ValueError, r"tokens are int32\[5\]"),
        ((1, 5), np.float32, TypeError, r"tokens are float32\[1, 5\]"),
    ]:
        with pytest.raises(error, match=message):
            jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))


def test_dropout_of_attention_reaches_the_model_while_training():
    for module in (
        GPT(GPTConfig(vocab=9, length=6, layers=2, heads=2, width=8, attention_dropout=0.5)),
        BERT(
            BERTConfig(vocab=9, length=6, layers=2, heads=2, width=8, mlp_width=8, dropout=0.0, attention_dropout=0.5)
        ),
    ):
        tokens = np.arange(1, 7)[None] % 9
        params = jax.jit(module.init)(jax.random.key(0), tokens)

        @jax.jit
        def apply(key, module=module, params=params, tokens=tokens):
            return module.apply(params, tokens, train=True, rngs={"dropout": key})

        one, again, other = (np.asarray(apply(jax.random.key(i))) for i in (1, 1, 2))
        np.testing.assert_array_equal(one, again)
        assert np.abs(one - other).max() > 1e-4
        assert np.abs(one - jax.jit(module.apply)(params, tokens)).max() > 1e-4
    with pytest.raises(ValueError, match=r"GPTConfig: attention_dropout=1"):
        GPTConfig(vocab=9, attention_dropout=1.0)
