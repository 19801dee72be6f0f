"""The core: what is learned (Task), what is carried (State), and the exact step between them.

It stands apart from the loop so that a researcher can take the step alone, `make_train_step(task, tx, strategy=...)`,
and write any loop around it.
"""

from jaxnn.core.init import roles as roles
from jaxnn.core.precision import Precision as Precision, in_precision as in_precision
from jaxnn.core.settings import Step as Step
from jaxnn.core.state import State as State, init_state as init_state
from jaxnn.core.step import make_train_step as make_train_step
from jaxnn.core.task import (
    Task as Task,
    from_functions as from_functions,
    from_nnx as from_nnx,
    supervised as supervised,
)
