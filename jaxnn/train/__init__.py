"""Training: `fit`, `evaluate` and `predict` over the core's step, and the hooks around it.

The loop owns everything that is not arithmetic: dispatch, rows, files, signals. It never makes the device wait for the
host, and it lets hooks act only at steps that they named beforehand, so that a run is the same however it was cut,
killed and resumed. What a user needs of the core is re-exported here.
"""

from jaxnn.core import Precision as Precision
from jaxnn.core import State as State
from jaxnn.core import Step as Step
from jaxnn.core import Task as Task
from jaxnn.core import from_functions as from_functions
from jaxnn.core import from_nnx as from_nnx
from jaxnn.core import in_precision as in_precision
from jaxnn.core import init_state as init_state
from jaxnn.core import make_train_step as make_train_step
from jaxnn.core import roles as roles
from jaxnn.core import supervised as supervised
from jaxnn.train.command import command as command
from jaxnn.train.command import conclude as conclude
from jaxnn.train.command import run_folder as run_folder
from jaxnn.train.command import span as span
from jaxnn.train.diagnosis import Diagnosis as Diagnosis
from jaxnn.train.diagnosis import Verdict as Verdict
from jaxnn.train.diagnosis import diagnose as diagnose
from jaxnn.train.evaluation import evaluate as evaluate
from jaxnn.train.evaluation import predict as predict
from jaxnn.train.fit import fit as fit
from jaxnn.train.hooks import Continue as Continue
from jaxnn.train.hooks import EarlyStopping as EarlyStopping
from jaxnn.train.hooks import Hook as Hook
from jaxnn.train.hooks import Moment as Moment
from jaxnn.train.hooks import Plan as Plan
from jaxnn.train.hooks import ReduceOnPlateau as ReduceOnPlateau
from jaxnn.train.hooks import Replace as Replace
from jaxnn.train.hooks import Rewind as Rewind
from jaxnn.train.hooks import Save as Save
from jaxnn.train.hooks import Stop as Stop
from jaxnn.train.loading import load_state as load_state
from jaxnn.train.lora import with_lora as with_lora
from jaxnn.train.options import PrecisionName as PrecisionName
from jaxnn.train.options import RunOptions as RunOptions
from jaxnn.train.options import StepOptions as StepOptions
from jaxnn.train.run import Checkpointing as Checkpointing
from jaxnn.train.run import Conditions as Conditions
from jaxnn.train.run import Dispatch as Dispatch
from jaxnn.train.run import Interrupted as Interrupted
from jaxnn.train.run import Log as Log
from jaxnn.train.run import Run as Run
from jaxnn.train.run import Setup as Setup
from jaxnn.train.summary import summary as summary
