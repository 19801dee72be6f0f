"""Verdicts from times whose truth is known, the clock's choice, and the control that widens or refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import bench
from jaxnn.bench import comparison
from jaxnn.bench.comparison import choose_clock, contrasts, judge
from jaxnn.bench.guards import BenchError


def times(rng, ratios, rounds=120, wall=0.02, cpu=0.02, share=1.0):
    """Seconds by clock [arms, rounds] of steps of 2 ms times a ratio; noise of two sizes, and a CPU share."""
    steps = 2e-3 * np.array(ratios)[:, None]
    busy = np.exp(0.3 * np.abs(rng.standard_normal(rounds)))  # of the whole round: pairs cancel it
    shape = (len(ratios), rounds)
    found = {"wall": steps * busy * np.exp(wall * rng.standard_normal(shape))}
    found["cpu"] = share * steps * np.exp(cpu * rng.standard_normal(shape))
    return found


def verdict(rng, ratios, final=True, look=3, **noise):
    names = ["base", *(f"head{i}" for i in range(1, len(ratios) - 1))]
    rows, aa, clock = judge(names, times(rng, ratios, **noise), 0.03, 0.05, look, final, 0)
    return rows, aa, clock


def test_verdicts_of_known_ratios():
    rng = np.random.default_rng(0)
    for ratio, wrong in ((1.0, ("regress", "improve")), (1.06, ("ok", "improve")), (0.93, ("ok", "regress"))):
        found = [verdict(rng, [1, ratio, 1])[0][0] for _ in range(60)]
        assert not [row for row in found if row.verdict in wrong]
        assert sum(row.verdict != "inconclusive" for row in found) >= 51
        covered = [ratio in row.estimate.interval for row in found]
        assert np.mean(covered) >= 0.9


def test_contrasts_are_uncorrelated_with_the_control():
    rng = np.random.default_rng(1)
    heads, aa = contrasts(np.exp(rng.standard_normal((4, 20_000))))
    assert heads.shape == (2, 20_000)
    for head in heads:
        assert abs(np.corrcoef(head, aa)[0, 1]) < 0.03
    np.testing.assert_allclose(np.var(heads, axis=1), 1.5, rtol=0.05)  # 2 for a plain pair
    exact, zero = contrasts(np.array([[1.0], [2.0], [1.0]]))
    assert exact[0, 0] == pytest.approx(math.log(2))
    assert zero[0] == 0


def test_the_clock_is_chosen_by_the_control_alone():
    rng = np.random.default_rng(2)
    quiet_cpu = times(rng, [1, 1.3, 1], wall=0.2, cpu=0.01)
    assert choose_clock(quiet_cpu, 0.95, 0) == "cpu"
    assert choose_clock(times(rng, [1, 1.3, 1], wall=0.01, cpu=0.2), 0.95, 0) == "wall"
    noisy_head = {clock: x.copy() for clock, x in quiet_cpu.items()}
    noisy_head["cpu"][1] *= np.exp(rng.standard_normal(noisy_head["cpu"].shape[1]))
    assert choose_clock(noisy_head, 0.95, 0) == "cpu"  # the candidate has no say


def test_a_step_that_waits_is_never_judged_by_cpu_time():
    rng = np.random.default_rng(3)
    waiting = times(rng, [1, 1, 1], wall=0.2, cpu=0.01, share=0.3)
    assert choose_clock(waiting, 0.95, 0) == "wall"


def test_a_wait_that_only_the_candidate_has_is_not_ok(monkeypatch):
    rng = np.random.default_rng(4)
    found = times(rng, [1, 1, 1], wall=0.05, cpu=0.005)
    found["wall"][1] *= 1.5
    monkeypatch.setattr(comparison, "choose_clock", lambda *_: "cpu")
    rows, _, _ = judge(["base", "head"], found, 0.03, 0.05, 2, True, 0)
    assert (rows[0].verdict, rows[0].reason) == ("inconclusive", "slower by the wall clock, not in CPU time")


def test_a_control_that_differs_widens_and_then_refuses():
    rng = np.random.default_rng(5)
    straight, _, _ = verdict(rng, [1, 1, 1])
    bent, aa, _ = verdict(rng, [1, 1, 1.012])
    assert aa.ratio == pytest.approx(1.012, abs=0.006)
    assert bent[0].estimate.interval.half > straight[0].estimate.interval.half + 0.004
    refused, _, _ = verdict(rng, [1, 1.2, 1.05])
    assert refused[0].verdict == "inconclusive"
    assert "control differs" in refused[0].reason


def test_rows_share_the_chance_of_a_miss():
    found = times(np.random.default_rng(6), [1, 1, 1, 1, 1, 1])
    one = {clock: x[[0, 1, 5]] for clock, x in found.items()}
    alone, _, _ = judge(["base", "a"], one, 0.03, 0.05, 2, True, 0)
    among, _, _ = judge(["base", "a", "b", "c", "d"], found, 0.03, 0.05, 2, True, 0)
    assert among[0].estimate.ratio == alone[0].estimate.ratio
    assert among[0].estimate.interval.half > alone[0].estimate.interval.half


def test_a_ratio_that_drifts_is_not_ok():
    found = times(np.random.default_rng(7), [1, 1, 1], wall=0.002, cpu=0.002)
    for clock in found:
        found[clock][1] *= np.linspace(0.985, 1.015, 120)
    rows, _, _ = judge(["base", "head"], found, 0.03, 0.05, 2, True, 0)
    assert rows[0].drift
    assert (rows[0].verdict, rows[0].reason) == ("inconclusive", "the ratio drifts")


def test_compare_runs_a_hidden_copy_of_the_base_and_stops(dial):
    # Twice the work; on a busy machine inconclusive is allowed, wrong is not.
    found = bench.compare({"base": dial("base", 60), "head": dial("head", 120)}, max_seconds=2.0, block_s=2e-3)
    assert found.verdict in ("regress", "inconclusive")
    assert found.ratio > 1.3 or found.aa.interval.high > 1.1  # where the copy of the base strays as far, it is the load
    assert set(found.measurements) == {"base", "head", "A/A"}
    assert found.rounds == len(found.measurements["A/A"].blocks) == len(found.measurements["base"].blocks)
    assert found.clock in ("wall", "cpu")
    positions = [block.position for block in found.measurements["head"].blocks[: 3 * (found.rounds // 3)]]
    assert {positions.count(p) for p in range(3)} == {found.rounds // 3}
    text = found.text(colour=True)
    assert f"-> \x1b[{'31mREGRESS' if found.verdict == 'regress' else '33mINCONCLUSIVE'}\x1b[0m (tol 3%)" in text
    assert "\x1b" not in str(found)  # no terminal here
    assert "\x1b" not in found._repr_html_()


def test_too_few_rounds_are_inconclusive_and_say_so(dial):
    found = bench.compare({"base": dial("base", 5), "head": dial("head", 5)}, max_seconds=0.0, block_s=1e-3)
    assert found.verdict == "inconclusive"
    assert "raise max_seconds" in str(found)


def test_the_worst_row_is_the_verdict(dial):
    functions = {"base": dial("base", 20), "same": dial("same", 20), "slow": dial("slow", 80)}
    found = bench.compare(functions, max_seconds=1.0, block_s=1e-3)
    assert list(found.rows) == ["same", "slow"]
    assert found.verdict in ("regress", "inconclusive")
    with pytest.raises(ValueError, match="there are 2 candidates"):
        _ = found.ratio


def test_bad_calls():
    def f(x):
        return x + 1

    def args(key):
        return (jax.random.normal(key, (3,)),)

    with pytest.raises(BenchError, match="needs a base and a candidate"):
        bench.compare({"base": f}, args=args)
    with pytest.raises(BenchError, match="tolerance=3 is no ratio"):
        bench.compare({"base": f, "head": f}, args=args, tolerance=3)
    with pytest.raises(BenchError, match=r"head: the function closes over global 'TABLE'"):
        bench.compare({"base": f, "head": lambda x: x + TABLE}, args=args)


TABLE = jnp.arange(3.0)
