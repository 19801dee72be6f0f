"""Training: `fit`, `evaluate` and `predict` over the core's step, and the hooks around it.

The loop owns everything that is not arithmetic: dispatch, rows, files, signals. It never makes the device wait for the
host, and it lets hooks act only at steps that they named beforehand, so that a run is the same however it was cut,
killed and resumed. What a user needs of the core is re-exported here.
"""

from jaxnn.core import (
    Precision as Precision,
    State as State,
    Step as Step,
    Task as Task,
    from_functions as from_functions,
    from_nnx as from_nnx,
    in_precision as in_precision,
    init_state as init_state,
    make_train_step as make_train_step,
    roles as roles,
    supervised as supervised,
)
from jaxnn.train.command import (
    command as command,
    conclude as conclude,
    run_folder as run_folder,
    span as span,
)
from jaxnn.train.diagnosis import Diagnosis as Diagnosis, Verdict as Verdict, diagnose as diagnose
from jaxnn.train.evaluation import evaluate as evaluate, predict as predict
from jaxnn.train.fit import fit as fit
from jaxnn.train.hooks import (
    Continue as Continue,
    EarlyStopping as EarlyStopping,
    Hook as Hook,
    Moment as Moment,
    Plan as Plan,
    ReduceOnPlateau as ReduceOnPlateau,
    Replace as Replace,
    Rewind as Rewind,
    Save as Save,
    Stop as Stop,
)
from jaxnn.train.loading import load_state as load_state
from jaxnn.train.lora import with_lora as with_lora
from jaxnn.train.options import PrecisionName as PrecisionName, RunOptions as RunOptions, StepOptions as StepOptions
from jaxnn.train.run import (
    Checkpointing as Checkpointing,
    Conditions as Conditions,
    Dispatch as Dispatch,
    Interrupted as Interrupted,
    Log as Log,
    Run as Run,
    Setup as Setup,
)
from jaxnn.train.study import Study as Study
from jaxnn.train.summary import summary as summary
