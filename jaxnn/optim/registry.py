"""Every optimizer there is, by name: what the contract tests, the parity tests and the benchmarks run over.

A new optimizer is one file in `algorithms/` and one entry here, with its import; `optim.NAME` takes a line for each
name in `optim/__init__.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

from jaxnn.optim.algorithms.adafactor import adafactor
from jaxnn.optim.algorithms.adagrad import adagrad
from jaxnn.optim.algorithms.adam import adam, adam_core, adamw
from jaxnn.optim.algorithms.adam_variants import amsgrad, nadam, radam
from jaxnn.optim.algorithms.ademamix import ademamix
from jaxnn.optim.algorithms.layerwise import lamb, lars
from jaxnn.optim.algorithms.lbfgs import lbfgs
from jaxnn.optim.algorithms.lion import lion
from jaxnn.optim.algorithms.mars import mars
from jaxnn.optim.algorithms.muon import muon
from jaxnn.optim.algorithms.normuon import normuon
from jaxnn.optim.algorithms.prodigy import prodigy
from jaxnn.optim.algorithms.psgd import psgd_kron
from jaxnn.optim.algorithms.rmsprop import rmsprop
from jaxnn.optim.algorithms.schedule_free import schedule_free_adamw, schedule_free_radam, schedule_free_sgd
from jaxnn.optim.algorithms.sgd import sgd
from jaxnn.optim.algorithms.shampoo import shampoo
from jaxnn.optim.algorithms.soap import soap
from jaxnn.optim.compose.scaling import decay, scale_by_lr
from jaxnn.optim.compose.select import ndim
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.wrappers.averages import ema, lookahead, tail_average
from jaxnn.optim.wrappers.cautious import cautious
from jaxnn.optim.wrappers.hyperball import hyperball
from jaxnn.optim.wrappers.sam import sam


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
    "muon": Entry(muon, 1e-2, "arXiv:2502.16982"),
    "normuon": Entry(normuon, 1e-2, "arXiv:2510.05491"),
    "soap": Entry(soap, 1e-2, "arXiv:2409.11321"),
    "shampoo": Entry(shampoo, 1e-2, "arXiv:2309.06497"),
    "psgd_kron": Entry(psgd_kron, 1e-2, "arXiv:1512.04202"),
    "adafactor": Entry(adafactor, 1e-1, "arXiv:1804.04235"),
    "amsgrad": Entry(amsgrad, 1e-2, "arXiv:1904.09237"),
    "nadam": Entry(nadam, 1e-2, "Dozat 2016"),
    "radam": Entry(radam, 3e-2, "arXiv:1908.03265"),
    "ademamix": Entry(ademamix, 3e-3, "arXiv:2409.03137"),
    "prodigy": Entry(prodigy, 1.0, "arXiv:2306.06101"),
    "lamb": Entry(lamb, 1e-2, "arXiv:1904.00962"),
    "lars": Entry(lambda lr: lars(lr, trust=0.02), 0.1, "arXiv:1708.03888"),
    "lbfgs": Entry(lambda lr: lbfgs(), 1.0, "Liu & Nocedal 1989", ("value", "value_fn")),
    "mars": Entry(mars, 1e-2, "arXiv:2411.10438"),
    "schedule_free_sgd": Entry(schedule_free_sgd, 1e-2, "arXiv:2405.15682"),
    "schedule_free_adamw": Entry(schedule_free_adamw, 1e-2, "arXiv:2405.15682"),
    "schedule_free_radam": Entry(schedule_free_radam, 5e-2, "arXiv:2405.15682"),
    "sam": Entry(lambda lr: sam(adam(lr)), 1e-2, "arXiv:2010.01412", ("value_fn",)),
    "asam": Entry(lambda lr: sam(adam(lr), 0.5, adaptive=True), 1e-2, "arXiv:2102.11600", ("value_fn",)),
    "ema": Entry(lambda lr: ema(adam(lr)), 1e-2, "Polyak & Juditsky 1992"),
    "tail_average": Entry(lambda lr: tail_average(adam(lr), 10), 1e-2, "arXiv:1803.05407"),
    "lookahead": Entry(lambda lr: lookahead(adam(lr)), 1e-2, "arXiv:1907.08610"),
    "cautious": Entry(lambda lr: stages(adam=cautious(adam_core()), lr=scale_by_lr(lr)), 1e-2, "arXiv:2411.16085"),
    "cautious_decay": Entry(
        lambda lr: stages(adam=adam_core(), decay=decay(0.1, cautious=True), lr=scale_by_lr(lr)),
        1e-2,
        "arXiv:2510.12402",
    ),
    "hyperball": Entry(
        lambda lr: stages(adam=adam_core(), lr=scale_by_lr(lr), ball=hyperball(ndim(2))), 1e-2, "arXiv:2606.16899"
    ),
}
