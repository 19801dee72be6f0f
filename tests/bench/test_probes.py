"""Peaks are of the right work, shares are honest, fits find their exponents."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxnn import bench, cost
from jaxnn.bench import probes, roofline, sweeping, timing
from jaxnn.bench.compilation import build
from jaxnn.bench.guards import BenchError
from jaxnn.bench.work import Work


def test_probes_do_the_work_they_claim(devices8):
    product = probes.product("bfloat16", side=64)
    program = build(product.case)
    assert cost.of(program.traced, compile=False).products == product.amount
    for make, arrays in ((probes.copy, 2), (probes.triad, 3)):
        probe = make(1 << 16)
        memory = cost.memory(build(probe.case).compiled)
        assert probe.amount == arrays * (1 << 16)
        assert memory.aliased == 1 << 16  # the result is written into a donated argument: no new pages
        assert memory.temporaries == 0
    reduce = build(probes.all_reduce(1 << 12).case)
    (collective,) = cost.collectives(reduce.compiled)
    assert (collective.kind, collective.group, collective.bytes) == ("all-reduce", 8, 1 << 12)


def test_a_triad_is_a_triad():
    probe = probes.triad(64)
    a, b, c, s = probe.case.make_args()
    np.testing.assert_array_equal(probe.case.function(a, b, c, s), np.asarray(b) + np.asarray(s) * np.asarray(c))


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_a_triad_that_allocates_its_result_would_measure_page_faults():
    """The mutation: not donated, every call is given new pages, and faults on each of them."""
    probe = probes.triad(32 << 20)  # beyond what malloc keeps for the next call

    def faults(donate):
        case = dataclasses.replace(probe.case, donate=donate)
        arm = timing.Arm("triad", build(case), np.random.default_rng(0))
        arm.calls = 4
        timing.run_block(arm, 0, 0, 0)
        return min(timing.run_block(arm, 0, 0, 0).minor_faults for _ in range(3))

    pages = 4 * (32 << 20) / 4096  # of four results; large pages make fewer faults of them
    assert faults("thread") < pages / 1000
    assert faults(None) > 4 * faults("thread") + pages / 1000


def test_peaks(monkeypatch, devices8):
    monkeypatch.setattr(probes, "_HOST_SIDE", 64)
    monkeypatch.setattr(probes, "_HOST_BYTES", 1 << 16)
    found = bench.peaks(seconds=0.2, dtypes=("float32",))
    assert list(found.by_name) == ["product float32", "copy", "triad", "dispatch", "all-reduce"]
    assert all(peak.value > 0 for peak in found.by_name.values())
    assert found["dispatch"].unit == "s"
    assert 1e-7 < found["dispatch"].value < 0.1
    assert "GFLOP/s" in str(found) or "TFLOP/s" in str(found) or "MFLOP/s" in str(found)


def work(flops, nbytes):
    memory = cost.Memory(arguments=1 << 40, outputs=0, temporaries=0, aliased=0, code=0)
    return Work(flops, flops, flops, nbytes, 2 * nbytes, memory, (), 1, "float32", (), ())


@pytest.mark.parametrize(
    ("flops", "nbytes", "verdict"),
    [
        (0.9e9, 0.1e8, "compute bound"),
        (0.1e9, 0.9e8, "memory bound"),
        (0.3e9, 0.3e8, "neither bound"),
        (0, 0, "neither bound"),
    ],
)
def test_attribution(flops, nbytes, verdict):
    """A probe that does 1e9 FLOPs in the time of the step, and one that moves 1e8 bytes in it."""
    seconds = 1e-3 * np.exp(0.01 * np.random.default_rng(0).standard_normal(60))
    product = probes.Probe(probes.product("float32").case, 1e9, "FLOP"), seconds
    copy = probes.Probe(probes.copy(64).case, 1e8, "B"), seconds
    found = roofline.attribute("step", work(flops, nbytes), seconds, product, copy)
    assert found.verdict == verdict
    assert found.compute.value == pytest.approx(flops / 1e9)
    assert found.memory.value == pytest.approx(nbytes / 1e8)
    assert found.memory_upper == pytest.approx(2 * nbytes / 1e8)
    assert verdict in str(found)


def test_more_than_the_peak_is_an_error_unless_it_is_noise():
    rng = np.random.default_rng(1)
    copy = probes.Probe(probes.copy(64).case, 1e12, "B"), np.full(60, 1e-3)
    sharp, wide = (1e-3 * np.exp(s * rng.standard_normal(60)) for s in (0.01, 1.0))
    product = probes.Probe(probes.product("float32").case, 1e9, "FLOP")
    with pytest.raises(BenchError, match=r"120% .* of the measured peak of FLOPs, which cannot be"):
        roofline.attribute("step", work(1.2e9, 1), sharp, (product, np.full(60, 1e-3)), copy)
    roofline.attribute("step", work(1.2e9, 1), wide, (product, np.full(60, 1e-3)), copy)


def test_measure_with_peaks(monkeypatch):
    monkeypatch.setattr(probes, "_HOST_BYTES", 1 << 20)

    def args(key):
        return (jax.random.normal(key, (64, 64)),)

    # many small steps on the host between products: far from any peak on any machine
    def step(x):
        return jax.lax.fori_loop(0, 40, lambda _, y: jnp.sort(jnp.sin(y), axis=0), x @ x)

    found = bench.measure("sorts", step, args=args, peaks=True, max_seconds=0.3)
    assert found.roofline.dtype == "float32"
    assert found.roofline.verdict == "neither bound"
    assert "-> neither bound" in str(found)


def test_fit_power_finds_what_made_the_times():
    n = np.array([64, 128, 256, 512, 1024.0])
    for a, b, k in ((1e-4, 1e-9, 2.0), (0.0, 2e-7, 1.0), (5e-3, 1e-12, 3.0)):
        found = [float(v[0]) for v in sweeping.fit_power(n, (a + b * n**k)[None])]
        assert found[2] == pytest.approx(k, abs=0.011)
        assert found[0] == pytest.approx(a, rel=0.02, abs=1e-6)
    t = (1e-4 + 1e-9 * n**2) * np.exp(0.05 * np.random.default_rng(0).standard_normal(5))

    def residuals(p):
        return (np.exp(p[0]) + np.exp(p[1]) * (n / 1024) ** p[2]) / t - 1

    best = optimize.least_squares(residuals, [np.log(1e-4), np.log(1e-3), 2.0], xtol=1e-12)
    a, b, k = (v[0] for v in sweeping.fit_power(n, t[None]))
    assert k == pytest.approx(best.x[2], abs=0.02)
    assert np.sum(((a + b * n**k) / t - 1) ** 2) <= 2 * best.cost * 1.01


def test_sweep_and_fit(dial):
    found = bench.sweep("dial", lambda n: dial("", n), {"n": [20, 80, 320, 1280]}, max_seconds=1.0)
    assert [point["n"] for point, _ in found.points] == [20, 80, 320, 1280]
    assert len({len(m.blocks) for _, m in found.points}) == 1  # all took part in every round
    fit = found.fit("n")
    assert fit.k_interval.low < 1.3  # truly 1: a busy machine widens the interval, and must not move it away
    assert fit.k_interval.high > 0.7
    assert fit.k in fit.k_interval
    assert fit(1280) == pytest.approx(found.points[-1][1].median_s, rel=0.6)
    assert "n^" in str(fit)
    with pytest.raises(ValueError, match=r"0 points at \[\] along 'T' \(there are \['n'\]\)"):
        found.fit("T")
    with pytest.raises(BenchError, match="gives no point"):
        bench.sweep("none", lambda: None, {})
