"""Optimizers that compose: every part of one can be seen, changed, logged, sharded and resumed.

Everything here goes in and comes out as an `optax.GradientTransformationExtraArgs`, so optax's transformations work
inside `stages` and `groups`, and ours inside `optax.chain`. What is added is what a closure hides: parts have names,
state has stable paths, hyperparameters are float32 leaves that change without compiling again, and what an update
reports is chosen when it is built.

    tx = optim.stages(
        clip=optim.clip_by_global_norm(1.0),
        adam=optim.adam_core(b2=0.95),
        decay=optim.decay(0.1, where=optim.role("matrix")),
        lr=optim.scale_by_lr(3e-4),
        metrics=("lr", "norms", "clip"),
    )
"""

from jaxnn.optim.algorithms.adafactor import adafactor as adafactor, adafactor_core as adafactor_core
from jaxnn.optim.algorithms.adagrad import adagrad as adagrad, adagrad_core as adagrad_core
from jaxnn.optim.algorithms.adam import adam as adam, adam_core as adam_core, adamw as adamw, adamw_core as adamw_core
from jaxnn.optim.algorithms.adam_variants import (
    amsgrad as amsgrad,
    amsgrad_core as amsgrad_core,
    nadam as nadam,
    nadam_core as nadam_core,
    radam as radam,
    radam_core as radam_core,
)
from jaxnn.optim.algorithms.ademamix import (
    ademamix as ademamix,
    ademamix_core as ademamix_core,
    alpha_warmup as alpha_warmup,
    b3_warmup as b3_warmup,
)
from jaxnn.optim.algorithms.layerwise import lamb as lamb, lamb_core as lamb_core, lars as lars, lars_core as lars_core
from jaxnn.optim.algorithms.lbfgs import lbfgs as lbfgs, lbfgs_core as lbfgs_core
from jaxnn.optim.algorithms.lion import lion as lion, lion_core as lion_core
from jaxnn.optim.algorithms.mars import mars as mars, mars_core as mars_core
from jaxnn.optim.algorithms.muon import muon as muon, muon_core as muon_core
from jaxnn.optim.algorithms.normuon import normuon as normuon, normuon_core as normuon_core
from jaxnn.optim.algorithms.orthogonalize import (
    Orthogonalizer as Orthogonalizer,
    newton_schulz as newton_schulz,
    polar_express as polar_express,
    rms_matched as rms_matched,
    spectral as spectral,
    unscaled as unscaled,
)
from jaxnn.optim.algorithms.prodigy import prodigy as prodigy, prodigy_core as prodigy_core
from jaxnn.optim.algorithms.psgd import psgd_kron as psgd_kron, psgd_kron_core as psgd_kron_core
from jaxnn.optim.algorithms.rmsprop import rmsprop as rmsprop, rmsprop_core as rmsprop_core
from jaxnn.optim.algorithms.schedule_free import (
    schedule_free as schedule_free,
    schedule_free_adamw as schedule_free_adamw,
    schedule_free_radam as schedule_free_radam,
    schedule_free_sgd as schedule_free_sgd,
)
from jaxnn.optim.algorithms.sgd import sgd as sgd, sgd_core as sgd_core
from jaxnn.optim.algorithms.shampoo import shampoo as shampoo, shampoo_core as shampoo_core
from jaxnn.optim.algorithms.soap import soap as soap, soap_core as soap_core
from jaxnn.optim.compose.access import get as get, replace as replace, reset as reset
from jaxnn.optim.compose.accumulate import accumulate as accumulate
from jaxnn.optim.compose.apply import apply_updates as apply_updates
from jaxnn.optim.compose.batched import batched as batched
from jaxnn.optim.compose.chunked import ChunkedStep as ChunkedStep, chunked_step as chunked_step
from jaxnn.optim.compose.dtypes import Blockwise as Blockwise, q8 as q8, with_state_dtype as with_state_dtype
from jaxnn.optim.compose.evaluated import eval_params as eval_params
from jaxnn.optim.compose.flat import flat as flat
from jaxnn.optim.compose.groups import group as group, groups as groups
from jaxnn.optim.compose.hyper_access import constants as constants, hyper as hyper, set_hyper as set_hyper
from jaxnn.optim.compose.matrices import Heads as Heads
from jaxnn.optim.compose.measures import metrics as metrics
from jaxnn.optim.compose.migrate import migrate as migrate
from jaxnn.optim.compose.rounding import master_weights as master_weights, stochastic_rounding as stochastic_rounding
from jaxnn.optim.compose.scaling import (
    clip_by_global_norm as clip_by_global_norm,
    decay as decay,
    frozen as frozen,
    scale_by_lr as scale_by_lr,
    stateless as stateless,
)
from jaxnn.optim.compose.select import (
    by_mask as by_mask,
    everything as everything,
    ndim as ndim,
    otherwise as otherwise,
    path as path,
    role as role,
)
from jaxnn.optim.compose.skip import loss_scale as loss_scale, skip_nonfinite as skip_nonfinite
from jaxnn.optim.compose.specs import state_specs as state_specs
from jaxnn.optim.compose.stable import stable as stable
from jaxnn.optim.compose.stacked import stacked as stacked
from jaxnn.optim.compose.stages import stages as stages
from jaxnn.optim.compose.summary import summary as summary
from jaxnn.optim.compose.transformation import (
    Transformation as Transformation,
    schedule_domains as schedule_domains,
    schedules_of as schedules_of,
)
from jaxnn.optim.population import Population as Population, grid as grid, members as members
from jaxnn.optim.schedules import (
    Schedule as Schedule,
    constant as constant,
    cosine as cosine,
    exponential as exponential,
    inverse_sqrt as inverse_sqrt,
    joined as joined,
    linear as linear,
    one_cycle as one_cycle,
    piecewise as piecewise,
    polynomial as polynomial,
    warmup as warmup,
    warmup_stable_decay as warmup_stable_decay,
)
from jaxnn.optim.wrappers.averages import ema as ema, lookahead as lookahead, tail_average as tail_average
from jaxnn.optim.wrappers.cautious import cautious as cautious
from jaxnn.optim.wrappers.hyperball import hyperball as hyperball
from jaxnn.optim.wrappers.sam import sam as sam
