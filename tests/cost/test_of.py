"""`cost.of` as a caller meets it: laziness, kinds of functions, memory, text, bad input, lines, and a whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import cost, models
from jaxnn.cost.source import split_scopes

X = jnp.ones((16, 16))
SHAPE = jax.ShapeDtypeStruct((16, 16), jnp.float32)


def f(x, w):
    return jnp.tanh(x @ w)


def test_nothing_runs_and_nothing_compiles_before_it_must(count_compiles):
    with count_compiles() as seen:
        found = cost.of(f, SHAPE, w=SHAPE)
        assert found.flops == 2 * 16**3 + 256
        assert "not compiled yet" in str(found)
    assert seen.compiles == []
    with count_compiles() as seen:
        assert found.xla_flops == pytest.approx(2 * 16**3, rel=0.01)
        assert found.memory.peak == 3 * 1024 + found.memory.temporaries
        assert found.collectives == ()
    assert len(seen.compiles) == 1
    with count_compiles() as seen:
        assert "compiled" in cost.of(f, SHAPE, SHAPE, compile=True).__dict__
    assert len(seen.compiles) == 1
    never = cost.of(f, SHAPE, SHAPE, compile=False)
    assert (never.xla_flops, never.xla_bytes, never.memory, never.collectives) == (None,) * 4
    assert "compile=False" in str(never)


def test_plain_jitted_and_traced_functions_and_static_arguments():
    expected = cost.of(f, X, X).flops
    assert cost.of(jax.jit(f), X, X).flops == expected
    assert cost.of(jax.jit(f).trace(X, X)).flops == expected
    assert cost.of(f, np.ones((16, 16), np.float32), X).flops == expected
    powers = jax.jit(lambda x, n: jnp.linalg.matrix_power(x, n), static_argnums=1)
    assert cost.of(powers, X, 4).products == 2 * 2 * 16**3
    assert cost.of(jax.jit(f), X, X).name == "f"


def test_bytes_between_their_bounds():
    chain = cost.of(lambda x, unused: jnp.exp(jnp.sin(x)), X, X)
    assert chain.bytes == 2 * 1024  # one argument read, one result written; the unused one isn't read
    assert chain.bytes_upper == 4 * 1024
    assert chain.bytes_by == {"sin": 2048, "exp": 2048}
    passed_on = cost.of(lambda x: (x, x + 1), X)
    assert passed_on.bytes == 2 * 1024
    table, rows = jnp.ones((1000, 8)), jnp.array([1, 2, 3])
    assert cost.of(lambda t, i: t[i], table, rows).bytes_by["gather"] < 1000


def test_memory_is_arguments_outputs_and_temporaries_without_aliases():
    update = lambda p, g: jax.tree.map(lambda p, g: p - 0.1 * g, p, g)  # noqa: E731
    kept = cost.of(jax.jit(update), X, X).memory
    assert (kept.arguments, kept.outputs, kept.aliased) == (2048, 1024, 0)
    donated = cost.of(jax.jit(update, donate_argnums=0), X, X).memory
    assert (donated.arguments, donated.outputs, donated.aliased) == (2048, 1024, 1024)
    assert donated.peak == kept.peak - 1024
    assert kept.peak == kept.arguments + kept.outputs + kept.temporaries
    chain = cost.of(lambda x: (x @ x) @ (x @ x).T, X).memory
    assert chain.temporaries >= 1024


def test_the_block_of_text_says_what_the_fields_say():
    looped = cost.of(lambda x: jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: x @ x, x), X, compile=True)
    text = str(looped)
    assert "FLOPs       8.702 k = dot_general 8.192 k + reduce_sum 510" in text
    assert "counted once" in text
    assert "arguments 1 KiB + outputs 1 KiB + temporaries 1 KiB - aliased 0 B" in text
    assert len(text.splitlines()) < 12
    html = looped._repr_html_()
    assert html.startswith("<table>")
    assert "dot_general 8.192 k" in html
    assert "&lt;lambda&gt;" in html
    assert "pure_callback x 1" in str(cost.of(lambda x: jax.pure_callback(np.sin, x, x), X))


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"cost.of: the first argument is float32\[16, 16\], not a function"):
        cost.of(f(X, X))
    with pytest.raises(TypeError, match=r"f can't be traced with \(0: float32\[16, 16\]\).*missing 1 required"):
        cost.of(f, X)
    with pytest.raises(TypeError, match=r"0: float32\[16, 16\], 1: float32\[7\].*contracting"):
        cost.of(f, X, jnp.ones(7))
    with pytest.raises(TypeError, match=r"1: str 'relu'.*static_argnums"):
        cost.of(f, X, "relu")
    with pytest.raises(TypeError, match="traced already and 1 arguments"):
        cost.of(jax.jit(f).trace(X, X), X)
    with pytest.raises(TypeError, match=r"cost.by_source: the first argument"):
        cost.by_source(3)


def test_a_gpt_step_is_six_n_d_and_attention():
    vocab, time, layers, width, batch = 32, 16, 3, 16, 2
    tokens = jnp.zeros((batch, time), jnp.int32)
    for scan in (False, True):
        c = models.GPTConfig(vocab=vocab, length=time, layers=layers, heads=2, width=width, scan=scan, tied=False)
        model = models.GPT(c)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)

        def loss(params, tokens, model=model):
            logits = jax.nn.log_softmax(model.apply(params, tokens))
            return -jnp.take_along_axis(logits, tokens[..., None], -1).mean()

        found = cost.of(jax.value_and_grad(loss), params, tokens)
        matrices = layers * 12 * width**2 + vocab * width
        attention = 12 * layers * batch * time * time * width
        assert found.products == 6 * matrices * batch * time + attention
        assert not found.unknown
        assert not found.flags


def test_lines_add_up_and_name_line_layer_and_phase():
    tx = optax.adam(1e-3)

    def loss(w, x):
        with jax.named_scope("net"):
            block = jax.checkpoint(lambda c, wi: (f(c, wi), None))
            x, _ = jax.lax.scan(block, x, w)
        return jnp.sum(x**2)

    def step(w, opt_state, x):
        value, grads = jax.value_and_grad(loss)(w, x)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, opt_state, w)
        return optax.apply_updates(w, updates), opt_state, value

    w = jnp.ones((3, 16, 16))
    args = (w, tx.init(w), X)
    lines = cost.by_source(step, *args)
    total = cost.of(step, *args)
    assert sum(line.flops for line in lines) == total.flops
    assert sum(line.bytes for line in lines) == total.bytes_upper
    products = {line.phase: line.primitives["dot_general"] for line in lines if "dot_general" in line.primitives}
    dot = 3 * 2 * 16**3
    assert products == {"forward": dot, "recompute": dot, "backward": 2 * dot}
    first = lines[0]
    assert "test_of.py" in first.source
    assert "(f)" in first.source
    assert (first.layer, first.phase) == ("net", "backward")
    assert "test_of.py:" in str(first)
    stage = [line for line in lines if line.layer == "optimizer"]
    assert sum(line.primitives.get("sqrt", 0) for line in stage) == w.size
    assert any("optax" in line.inner for line in stage)


def test_scopes():
    assert split_scopes("transpose(jvp(GPT))/block_0/attn") == ("GPT/block_0/attn", "backward")
    assert split_scopes("jvp(GPT)/block_0") == ("GPT/block_0", "forward")
    assert split_scopes("transpose(jvp(net))/rematted_computation/block") == ("net/block", "recompute")
    assert split_scopes("vmap(jvp())") == ("", "forward")
    assert split_scopes("") == ("", "forward")
