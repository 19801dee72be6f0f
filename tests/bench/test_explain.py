"""The page of a step: any step's lines, layers and stages, its memory, what changed, and files that are refused."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import bench, cost
from jaxnn.bench import BenchError, explaining
from jaxnn.bench.probes import Peak


class Net(nn.Module):
    width: int = 16

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="down")(nn.gelu(nn.Dense(self.width, name="up")(x)))


def make(width=16, clip=True):
    module, x = Net(width), jnp.ones((8, 8))
    params = module.init(jax.random.key(0), x)
    tx = optax.chain(optax.clip_by_global_norm(1.0) if clip else optax.identity(), optax.adamw(1e-3))

    def step(state, x):
        params, opt_state = state
        grads = jax.grad(lambda p: jnp.mean(module.apply(p, x) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), x.sum()

    return step, ((params, tx.init(params)), x)


@pytest.fixture(scope="module")
def plain():
    step, args = make()
    return bench.explain(step, *args, name="plain optax")


def test_the_function_is_the_function_however_often_it_is_asked_for():
    assert bench.explain is bench.explain is explaining.explain
    assert callable(bench.explain)


def test_the_parts_add_up_and_know_where_they_come_from(plain):
    step, args = make()
    expected = cost.of(step, *args, compile=False).flops
    assert sum(part.flops for part in plain.parts) == pytest.approx(expected) == plain.totals["FLOPs"]
    assert {"clip_by_global_norm", "scale_by_adam", "add_decayed_weights"} <= set(plain.by(lambda part: part.stage))
    assert {"Net/up", "Net/down"} <= set(plain.by(lambda part: part.layer))
    assert {"forward", "backward"} <= set(plain.by(lambda part: part.phase))
    assert any(part.source.startswith("test_explain.py:") for part in plain.parts)
    assert plain.memory["peak"] == plain.memory["arguments"] + plain.memory["outputs"] + plain.memory["temporaries"]
    assert plain.arguments["args[1]"] == 8 * 8 * 4
    assert all(plain.compile[key] > 0 for key in ("trace s", "lower s", "compile s", "executable bytes"))
    assert "Net/up" in str(plain)


def test_a_jitted_step_that_donates_and_a_profile():
    step, args = make()
    found = bench.explain(jax.jit(step, donate_argnums=0), *args, profile=2)
    assert found.memory["aliased"] > 0
    assert sum(share for *_, share in found.ops) == pytest.approx(1, abs=1e-6)
    assert any("scale_by_adam" in origin for _, origin, *_ in found.ops)
    jax.block_until_ready(args)  # still there: the profile ran on copies


def test_what_a_loop_would_stumble_over_is_a_remark():
    found = bench.explain(lambda s, x: (s * 1.0, x), jnp.ones(3, jnp.int32), np.ones(3, np.float32))
    text = " ".join(found.remarks)
    assert "args[0]: int32[3], then float32[3]" in text
    assert "args[1] float32[3] is on the host" in text
    assert not bench.explain(lambda s, x: (s + x, x), jnp.ones(3), jnp.ones(3)).remarks


def test_the_page_shows_what_changed(tmp_path, plain):
    step, args = make(width=32, clip=False)
    out = tmp_path / "page.html"
    found = bench.explain(step, *args, out=out, against=plain)
    html = out.read_text()
    for text in ("Against plain optax", "Net/up (backward)", "clip_by_global_norm (forward)", "By optimizer stage"):
        assert text in html
    assert "adamw" not in html
    file = tmp_path / "e.json"
    plain.save(file)
    assert explaining.load(file) == plain
    assert "clip_by_global_norm (forward)" in found.page(explaining.load(file)).html()
    assert "Every layer and stage does the same work" in found.page(found).html()
    bench.explain(jnp.sin, jnp.ones(3), out=out, against=jnp.cos)
    assert "Against cos" in out.read_text()
    bench.explain(jnp.sin, jnp.ones(3), out=out, against=file)
    assert "Against plain optax" in out.read_text()
    assert found.totals["FLOPs"] > plain.totals["FLOPs"]


def test_floors_by_the_peaks_that_were_measured(plain):
    def peak(name, value, unit):
        return Peak(name, value, bench.Interval(value, value), unit)

    by_name = {"product float32": peak("product float32", 1e9, "FLOP"), "copy": peak("copy", 1e9, "B")}
    step, args = make()
    found = bench.explain(step, *args, peaks=bench.Peaks("x", by_name))
    assert found.floors["float32 products"] == pytest.approx(found.totals["FLOPs"] / 1e9)
    assert found.floors["memory, if all is fused"] == pytest.approx(found.totals["bytes at least"] / 1e9)
    assert "At least" in found.page().html()


def test_several_devices_list_their_collectives(devices8):
    mesh = jax.sharding.Mesh(np.array(devices8[:4]), ("data",))
    x = jax.device_put(jnp.ones((8, 8)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    found = bench.explain(lambda x: jnp.sum(x @ x.T), x)
    assert any("all-" in line and "data" in line for line in found.collectives)


def test_files_that_are_no_explanation(tmp_path, plain):
    file = tmp_path / "e.json"
    plain.save(file)
    content = json.loads(file.read_text())
    for text, message in [
        ("{", "cannot be read as JSON"),
        ("[]", "is of schema None"),
        (json.dumps(content | {"schema": "jaxnn.bench.explanation/2"}), "explanation/2"),
        (json.dumps({k: v for k, v in content.items() if k != "parts"}), "is damaged: KeyError"),
        (json.dumps(content | {"parts": [{"x": 1}]}), "is damaged"),
    ]:
        file.write_text(text)
        with pytest.raises(BenchError, match=message):
            explaining.load(file)
    with pytest.raises(BenchError, match="cannot be read"):
        explaining.load(tmp_path / "gone.json")
    with pytest.raises(TypeError, match="float is not callable"):
        bench.explain(1.0)
