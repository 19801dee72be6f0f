"""Model families in Flax Linen, one file each, over the shared blocks in `layers`.

Linen because `init` and `apply` are pure and its dispatch was the fastest measured. A model names its axes through
`sharding.constrain` and declares each parameter's role, and knows nothing else of devices, optimizers or precision
policies; families share little, so that each file reads as the whole model.
"""

from jaxnn.models import cnn as cnn
from jaxnn.models import gpt as gpt
from jaxnn.models import layers as layers
from jaxnn.models import mlp as mlp
from jaxnn.models.cnn import CNN as CNN
from jaxnn.models.gpt import GPT as GPT
from jaxnn.models.gpt import GPTConfig as GPTConfig
from jaxnn.models.gpt import stack_layers as stack_layers
from jaxnn.models.gpt import unstack_layers as unstack_layers
from jaxnn.models.mlp import MLP as MLP
from jaxnn.models.sampling import generate as generate
