"""Every optimizer against the package it comes from: frozen fixtures, made by tests/fixtures/make_optim_fixtures.py.

One entry of CASES is one comparison. The error is the largest difference of a parameter after any step, over the
largest distance that the reference moved it; docs/optim-divergences.md lists those that are not small, and why.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "optim"
MATRICES = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
ELEMENTWISE, MATRIX = 1e-5, 1e-4  # float32 against float64, over 10 steps
B2 = 1 - 2**-10  # what the fixtures have where b2 enters uncorrected: 1 - 0.999 in float32 is 1.3e-5 from 0.001


def recorded(extra: dict[str, np.ndarray]) -> Callable[[Any, tuple[int, ...]], Any]:
    """The noise that the reference drew, by an update's number and a stack's shape [1, m, n]."""

    def noise(count: Any, _: Any, shape: tuple[int, ...]) -> Any:
        return jnp.asarray(extra["noise/" + "x".join(map(str, shape[1:]))], jnp.float32)[count - 1][None]

    return noise


class Case(NamedTuple):
    """One comparison.

    Attributes:
        make: The fixture's extra arrays by name -> optimizer.
        tolerance: Of the error.
        least: The error is at least this: a documented divergence, which must not go unnoticed when it ends.
        fixture: Name of the file; the case's name by default.
        read: (state, parameters) -> the parameters to compare.
    """

    make: Callable[[dict[str, np.ndarray]], optax.GradientTransformation]
    tolerance: float = ELEMENTWISE
    least: float = 0.0
    fixture: str = ""
    read: Callable[[Any, Any], Any] = lambda state, params: params


# One row a comparison; where `least` is given, it is one of the table of what differs on purpose.
CASES: dict[str, Case] = {
    "sgd": Case(lambda extra: optim.sgd(0.1)),
    "sgd_momentum": Case(lambda extra: optim.sgd(0.1, 0.9, 0.3)),
    "sgd_nesterov": Case(lambda extra: optim.sgd(0.1, 0.9, nesterov=True)),
    "rmsprop": Case(lambda extra: optim.rmsprop(0.01)),
    "rmsprop_all": Case(lambda extra: optim.rmsprop(0.01, 0.9, momentum=0.8, centered=True)),
    "adagrad": Case(lambda extra: optim.adagrad(0.1, initial=0.1)),
    "adam": Case(lambda extra: optim.adam(0.01)),
    "adamw": Case(lambda extra: optim.adamw(0.01, weight_decay=0.1)),
    "lion": Case(lambda extra: optim.lion(0.01, weight_decay=0.1)),
    "muon": Case(lambda extra: optim.muon(0.02, weight_decay=0.1, scale=optim.spectral), MATRIX),
    "muon_rms": Case(
        lambda extra: optim.muon(0.02, weight_decay=0.1, nesterov=False, orthogonalize=optim.newton_schulz(3)), MATRIX
    ),
    "muon_gram": Case(
        lambda extra: optim.muon(
            0.02, weight_decay=0.1, orthogonalize=optim.newton_schulz(gram=1), scale=optim.spectral
        ),
        MATRIX,
        fixture="muon",
    ),
    "muon_bfloat16": Case(lambda extra: optim.muon(0.02, weight_decay=0.1, scale=optim.spectral), 0.05, least=1e-3),
    "normuon": Case(lambda extra: optim.normuon(0.02, weight_decay=0.1), MATRIX),
    "soap": Case(lambda extra: optim.soap(0.01, weight_decay=0.0, every=3, max_dim=6), MATRIX),
    "soap_heavyball": Case(lambda extra: optim.soap(0.01, weight_decay=0.0, every=1, max_dim=6), MATRIX),
    "soap_long": Case(lambda extra: optim.soap(0.01, weight_decay=0.0, every=3), 0.6, least=0.2),
    "soap_vectors": Case(lambda extra: optim.soap(0.01, weight_decay=0.0, every=3, max_dim=6), 1.0, least=0.5),
    "soap_decay": Case(lambda extra: optim.soap(0.01, weight_decay=0.1, every=3, max_dim=6), 0.03, least=0.01),
    "shampoo": Case(
        lambda extra: optim.stages(
            shampoo=optim.shampoo_core(0.0, 1.0, 1e-3, every=1, graft=None), lr=optim.scale_by_lr(0.1)
        ),
        MATRIX,
    ),
    "psgd_kron": Case(lambda extra: optim.psgd_kron(0.01, noise=recorded(extra)), MATRIX),
    "psgd_kron_damped": Case(lambda extra: optim.psgd_kron(0.01, noise=recorded(extra)), 1e-3, least=1.2e-4),
    "adafactor": Case(lambda extra: optim.adafactor(0.01, min_dim=1)),
    "amsgrad": Case(lambda extra: optim.amsgrad(0.01, b2=0.5)),
    "nadam": Case(lambda extra: optim.nadam(0.01)),
    "radam": Case(lambda extra: optim.radam(0.01, b2=B2)),
    "ademamix": Case(lambda extra: optim.ademamix(0.01, b2=0.99, b3=0.999)),
    "mars": Case(lambda extra: optim.mars(0.01, weight_decay=0.1)),
    "lbfgs": Case(lambda extra: optim.lbfgs(0.5, 3), MATRIX),
    "lamb": Case(
        lambda extra: optim.stages(
            # The package divides the rate by 1 - b1^t, and the moments by nothing; `optim.lamb` is the paper's.
            adam=optim.adam_core(eps=1e-6, bias_correction=False),
            trust=optax.scale_by_trust_ratio(eps=1e-6),
            lr=optim.scale_by_lr(lambda t: 0.01 / (1 - 0.9 ** (t + 1))),
        )
    ),
    "lamb_ready": Case(lambda extra: optim.lamb(0.01), 0.8, least=0.5, fixture="lamb"),
    "lars": Case(lambda extra: optim.lars(0.1, weight_decay=0.1, trust=0.1)),
    "prodigy": Case(lambda extra: optim.prodigy(1.0, b2=B2, weight_decay=0.01, d0=1e-3)),
    "lookahead": Case(lambda extra: optim.lookahead(optim.sgd(0.1, 0.9), 4, 0.3)),
    "schedule_free_sgd": Case(lambda extra: optim.schedule_free_sgd(0.1, weight_decay=0.1)),
    "schedule_free_adamw": Case(lambda extra: optim.schedule_free_adamw(0.01, weight_decay=0.1)),
    "schedule_free_radam": Case(lambda extra: optim.schedule_free_radam(0.3, b2=B2)),
    "schedule_free_average": Case(lambda extra: optim.schedule_free_adamw(0.01, r=1.0), read=optim.eval_params),
}


# optax with the settings of the fixture: it differs by at least that much, or does not by as much as the tolerance.
OPTAX: dict[str, Case] = {
    "nadam": Case(lambda extra: optax.nadam(0.01), 0.5, least=0.4),
    "amsgrad": Case(lambda extra: optax.amsgrad(0.01, b2=0.5), 0.2, least=0.15),
    "muon": Case(lambda extra: optax.contrib.muon(0.02, weight_decay=0.1, beta=0.95), 0.2, least=0.1),
    "prodigy": Case(
        lambda extra: optax.contrib.prodigy(1.0, (0.9, B2), weight_decay=0.01, estim_lr0=1e-3), 1.0, least=0.9
    ),
    "lars": Case(
        lambda extra: optax.lars(
            0.1, 0.1, trust_coefficient=0.1, trust_ratio_mask=MATRICES, weight_decay_mask=MATRICES
        ),
        0.06,
        least=0.03,
    ),
    "rmsprop": Case(lambda extra: optax.rmsprop(0.01, 0.99), 2e-4, least=5e-5),
    "adagrad": Case(lambda extra: optax.adagrad(0.1, initial_accumulator_value=0.1, eps=1e-10)),
    "radam": Case(lambda extra: optax.radam(0.01, b2=B2)),
}


def load(name: str) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """A fixture's arrays by kind and leaf, and how it was made."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays: dict[str, dict[str, np.ndarray]] = {"extra": {}}
        for key in file.files:
            if key != "about":
                kind, _, leaf = key.partition("/")
                arrays.setdefault(kind, {})[leaf] = file[key]
        return arrays, json.loads(str(file["about"]))


def run(case: Case, arrays: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The parameters after every step."""
    tx = case.make(arrays["extra"])
    params = {name: jnp.asarray(x) for name, x in arrays["start"].items()}
    grads = {name: jnp.asarray(x) for name, x in arrays["grads"].items()}

    def step(carry: Any, g: Any) -> Any:
        params, state = carry
        value = jnp.zeros(())
        updates, state = optax.with_extra_args_support(tx).update(g, state, params, value=value)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), case.read(state, params)

    return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), grads)[1])()


def error(arrays: dict[str, dict[str, np.ndarray]], ours: dict[str, np.ndarray]) -> float:
    """The largest difference over the largest movement, of any leaf."""
    found = []
    for name, theirs in arrays["params"].items():
        moved = np.abs(theirs - arrays["start"][name]).max()
        found.append(np.abs(np.asarray(ours[name], np.float64) - theirs).max() / moved)
    return float(max(found))


SLOW = {
    "soap_heavyball",
    "soap_long",
    "soap_vectors",
    "soap_decay",
    "psgd_kron_damped",
}  # what ends here is seen in the full run


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES])
def test_moves_as_its_reference(name):
    case = CASES[name]
    arrays, about = load(case.fixture or name)
    found = error(arrays, run(case, arrays))
    assert case.least <= found <= case.tolerance, f"{name}: error {found:.2e} against {about}"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in {"lars", "muon"} else ()) for n in OPTAX]
)
def test_optax_differs_by_what_the_document_says(name):
    """By as much as is written there, so that it is known when it ends."""
    arrays, about = load(name)
    found = error(arrays, run(OPTAX[name], arrays))
    assert OPTAX[name].least <= found <= OPTAX[name].tolerance, f"{name}: error {found:.2e} against {about}"


def test_eight_bits_are_no_coarser_than_torchao():
    """Root mean square distance from Adam with a state in float32, after ten steps: 0.6 of torchao's AdamW8bit."""
    arrays, about = load("adamw8bit")

    def last(tx):
        return np.asarray(run(Case(lambda extra: tx), arrays)["kernel"][-1])

    full, ours = last(optim.adam(0.01)), last(optim.with_state_dtype(optim.adam(0.01), optim.q8))
    mean = lambda x: float(np.sqrt(np.mean(np.square(x))))  # noqa: E731
    theirs = mean(arrays["params"]["kernel"][-1] - full)
    assert theirs > 1e-3 * mean(full - arrays["start"]["kernel"]), about
    assert mean(ours - full) < theirs


def test_every_fixture_is_used_and_small():
    files = {path.stem: path for path in FIXTURES.glob("*.npz")}
    assert set(files) == {case.fixture or name for name, case in CASES.items()} | {"adamw8bit"}
    assert max(path.stat().st_size for path in files.values()) < 100_000
    assert all("versions" in load(name)[1] for name in files)
