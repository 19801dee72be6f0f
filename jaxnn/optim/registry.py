"""Every optimizer there is, by name: what the contract tests, the parity tests and the benchmarks run over.

A new optimizer is one file in `algorithms/` and one line here.
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

from jaxnn.optim.algorithms.adagrad import adagrad
from jaxnn.optim.algorithms.adam import adam, adamw
from jaxnn.optim.algorithms.lion import lion
from jaxnn.optim.algorithms.rmsprop import rmsprop
from jaxnn.optim.algorithms.sgd import sgd


class Entry(NamedTuple):
    """One optimizer.

    Attributes:
        make: `make(lr) -> transformation`, everything else at its default.
        lr: A rate at which it makes headway on small problems.
        source: Paper.
        needs: Extra arguments that its update needs: "value", "value_fn", "key".
    """

    make: Callable[[float], optax.GradientTransformationExtraArgs]
    lr: float
    source: str
    needs: tuple[str, ...] = ()


OPTIMIZERS: dict[str, Entry] = {
    "sgd": Entry(lambda lr: sgd(lr, 0.9, nesterov=True), 1e-3, "Sutskever et al. 2013"),
    "rmsprop": Entry(rmsprop, 1e-2, "Tieleman & Hinton 2012"),
    "adagrad": Entry(adagrad, 1e-1, "Duchi et al. 2011, JMLR 12"),
    "adam": Entry(adam, 1e-2, "arXiv:1412.6980"),
    "adamw": Entry(adamw, 1e-2, "arXiv:1711.05101"),
    "lion": Entry(lion, 3e-3, "arXiv:2302.06675"),
}
