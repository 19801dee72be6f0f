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

from jaxnn.optim.algorithms.adafactor import adafactor as adafactor
from jaxnn.optim.algorithms.adafactor import adafactor_core as adafactor_core
from jaxnn.optim.algorithms.adagrad import adagrad as adagrad
from jaxnn.optim.algorithms.adagrad import adagrad_core as adagrad_core
from jaxnn.optim.algorithms.adam import adam as adam
from jaxnn.optim.algorithms.adam import adam_core as adam_core
from jaxnn.optim.algorithms.adam import adamw as adamw
from jaxnn.optim.algorithms.adam import adamw_core as adamw_core
from jaxnn.optim.algorithms.adam_variants import amsgrad as amsgrad
from jaxnn.optim.algorithms.adam_variants import amsgrad_core as amsgrad_core
from jaxnn.optim.algorithms.adam_variants import nadam as nadam
from jaxnn.optim.algorithms.adam_variants import nadam_core as nadam_core
from jaxnn.optim.algorithms.adam_variants import radam as radam
from jaxnn.optim.algorithms.adam_variants import radam_core as radam_core
from jaxnn.optim.algorithms.ademamix import ademamix as ademamix
from jaxnn.optim.algorithms.ademamix import ademamix_core as ademamix_core
from jaxnn.optim.algorithms.ademamix import alpha_warmup as alpha_warmup
from jaxnn.optim.algorithms.ademamix import b3_warmup as b3_warmup
from jaxnn.optim.algorithms.layerwise import lamb as lamb
from jaxnn.optim.algorithms.layerwise import lamb_core as lamb_core
from jaxnn.optim.algorithms.layerwise import lars as lars
from jaxnn.optim.algorithms.layerwise import lars_core as lars_core
from jaxnn.optim.algorithms.lbfgs import lbfgs as lbfgs
from jaxnn.optim.algorithms.lbfgs import lbfgs_core as lbfgs_core
from jaxnn.optim.algorithms.lion import lion as lion
from jaxnn.optim.algorithms.lion import lion_core as lion_core
from jaxnn.optim.algorithms.mars import mars as mars
from jaxnn.optim.algorithms.mars import mars_core as mars_core
from jaxnn.optim.algorithms.muon import muon as muon
from jaxnn.optim.algorithms.muon import muon_core as muon_core
from jaxnn.optim.algorithms.normuon import normuon as normuon
from jaxnn.optim.algorithms.normuon import normuon_core as normuon_core
from jaxnn.optim.algorithms.orthogonalize import Orthogonalizer as Orthogonalizer
from jaxnn.optim.algorithms.orthogonalize import newton_schulz as newton_schulz
from jaxnn.optim.algorithms.orthogonalize import polar_express as polar_express
from jaxnn.optim.algorithms.orthogonalize import rms_matched as rms_matched
from jaxnn.optim.algorithms.orthogonalize import spectral as spectral
from jaxnn.optim.algorithms.orthogonalize import unscaled as unscaled
from jaxnn.optim.algorithms.prodigy import prodigy as prodigy
from jaxnn.optim.algorithms.prodigy import prodigy_core as prodigy_core
from jaxnn.optim.algorithms.psgd import psgd_kron as psgd_kron
from jaxnn.optim.algorithms.psgd import psgd_kron_core as psgd_kron_core
from jaxnn.optim.algorithms.rmsprop import rmsprop as rmsprop
from jaxnn.optim.algorithms.rmsprop import rmsprop_core as rmsprop_core
from jaxnn.optim.algorithms.schedule_free import schedule_free as schedule_free
from jaxnn.optim.algorithms.schedule_free import schedule_free_adamw as schedule_free_adamw
from jaxnn.optim.algorithms.schedule_free import schedule_free_radam as schedule_free_radam
from jaxnn.optim.algorithms.schedule_free import schedule_free_sgd as schedule_free_sgd
from jaxnn.optim.algorithms.sgd import sgd as sgd
from jaxnn.optim.algorithms.sgd import sgd_core as sgd_core
from jaxnn.optim.algorithms.shampoo import shampoo as shampoo
from jaxnn.optim.algorithms.shampoo import shampoo_core as shampoo_core
from jaxnn.optim.algorithms.soap import soap as soap
from jaxnn.optim.algorithms.soap import soap_core as soap_core
from jaxnn.optim.compose.access import get as get
from jaxnn.optim.compose.access import replace as replace
from jaxnn.optim.compose.access import reset as reset
from jaxnn.optim.compose.accumulate import accumulate as accumulate
from jaxnn.optim.compose.apply import apply_updates as apply_updates
from jaxnn.optim.compose.batched import batched as batched
from jaxnn.optim.compose.chunked import ChunkedStep as ChunkedStep
from jaxnn.optim.compose.chunked import chunked_step as chunked_step
from jaxnn.optim.compose.dtypes import Blockwise as Blockwise
from jaxnn.optim.compose.dtypes import q8 as q8
from jaxnn.optim.compose.dtypes import with_state_dtype as with_state_dtype
from jaxnn.optim.compose.evaluated import eval_params as eval_params
from jaxnn.optim.compose.flat import flat as flat
from jaxnn.optim.compose.groups import group as group
from jaxnn.optim.compose.groups import groups as groups
from jaxnn.optim.compose.matrices import Heads as Heads
from jaxnn.optim.compose.measures import metrics as metrics
from jaxnn.optim.compose.migrate import migrate as migrate
from jaxnn.optim.compose.rounding import master_weights as master_weights
from jaxnn.optim.compose.rounding import stochastic_rounding as stochastic_rounding
from jaxnn.optim.compose.scaling import clip_by_global_norm as clip_by_global_norm
from jaxnn.optim.compose.scaling import decay as decay
from jaxnn.optim.compose.scaling import frozen as frozen
from jaxnn.optim.compose.scaling import scale_by_lr as scale_by_lr
from jaxnn.optim.compose.scaling import stateless as stateless
from jaxnn.optim.compose.select import by_mask as by_mask
from jaxnn.optim.compose.select import everything as everything
from jaxnn.optim.compose.select import ndim as ndim
from jaxnn.optim.compose.select import otherwise as otherwise
from jaxnn.optim.compose.select import path as path
from jaxnn.optim.compose.select import role as role
from jaxnn.optim.compose.skip import loss_scale as loss_scale
from jaxnn.optim.compose.skip import skip_nonfinite as skip_nonfinite
from jaxnn.optim.compose.specs import state_specs as state_specs
from jaxnn.optim.compose.stable import stable as stable
from jaxnn.optim.compose.stages import stages as stages
from jaxnn.optim.compose.summary import summary as summary
from jaxnn.optim.compose.transformation import Transformation as Transformation
from jaxnn.optim.compose.transformation import schedule_domains as schedule_domains
from jaxnn.optim.compose.transformation import schedules_of as schedules_of
from jaxnn.optim.hyper import constants as constants
from jaxnn.optim.hyper import hyper as hyper
from jaxnn.optim.hyper import set_hyper as set_hyper
from jaxnn.optim.population import Population as Population
from jaxnn.optim.population import grid as grid
from jaxnn.optim.population import members as members
from jaxnn.optim.schedules import Schedule as Schedule
from jaxnn.optim.schedules import constant as constant
from jaxnn.optim.schedules import cosine as cosine
from jaxnn.optim.schedules import exponential as exponential
from jaxnn.optim.schedules import inverse_sqrt as inverse_sqrt
from jaxnn.optim.schedules import joined as joined
from jaxnn.optim.schedules import linear as linear
from jaxnn.optim.schedules import one_cycle as one_cycle
from jaxnn.optim.schedules import piecewise as piecewise
from jaxnn.optim.schedules import polynomial as polynomial
from jaxnn.optim.schedules import warmup as warmup
from jaxnn.optim.schedules import warmup_stable_decay as warmup_stable_decay
from jaxnn.optim.wrappers.averages import ema as ema
from jaxnn.optim.wrappers.averages import lookahead as lookahead
from jaxnn.optim.wrappers.averages import tail_average as tail_average
from jaxnn.optim.wrappers.cautious import cautious as cautious
from jaxnn.optim.wrappers.hyperball import hyperball as hyperball
from jaxnn.optim.wrappers.sam import sam as sam
