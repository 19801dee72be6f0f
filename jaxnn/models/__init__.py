"""Model families in Flax Linen, one file each, over the shared blocks in `layers`.

Linen because `init` and `apply` are pure and its dispatch was the fastest measured. A model names its axes through
`sharding.constrain` and declares each parameter's role, and knows nothing else of devices, optimizers or precision
policies; families share little, so that each file reads as the whole model.
"""

from jaxnn.models import (
    bert as bert,
    cnn as cnn,
    gpt as gpt,
    inception as inception,
    layers as layers,
    mlp as mlp,
    resnet as resnet,
    seq2seq as seq2seq,
    transformer as transformer,
    vgg as vgg,
    vit as vit,
)
from jaxnn.models.beam import beam_search as beam_search, greedy_search as greedy_search, translate as translate
from jaxnn.models.bert import BERT as BERT, BERTConfig as BERTConfig
from jaxnn.models.cnn import CNN as CNN
from jaxnn.models.generation import generate as generate
from jaxnn.models.gpt import (
    GPT as GPT,
    GPTConfig as GPTConfig,
    stack_layers as stack_layers,
    unstack_layers as unstack_layers,
)
from jaxnn.models.inception import Inception as Inception, InceptionConfig as InceptionConfig
from jaxnn.models.lora import (
    LoRA as LoRA,
    apply_lora as apply_lora,
    init_lora as init_lora,
    merge_lora as merge_lora,
    unmerge_lora as unmerge_lora,
)
from jaxnn.models.mlp import MLP as MLP
from jaxnn.models.resnet import ResNet as ResNet, ResNetConfig as ResNetConfig
from jaxnn.models.rnn import RNN as RNN, GRUCell as GRUCell, LSTMCell as LSTMCell, SimpleCell as SimpleCell
from jaxnn.models.seq2seq import (
    AdditiveAttention as AdditiveAttention,
    Seq2Seq as Seq2Seq,
    Seq2SeqConfig as Seq2SeqConfig,
    SideBySide as SideBySide,
)
from jaxnn.models.transformer import Transformer as Transformer
from jaxnn.models.transformer_config import TransformerConfig as TransformerConfig
from jaxnn.models.vgg import VGG as VGG, VGGConfig as VGGConfig
from jaxnn.models.vit import ViT as ViT, ViTConfig as ViTConfig
from jaxnn.models.weights import load as load, save as save
from jaxnn.models.weights.vision import from_torchvision as from_torchvision, to_torchvision as to_torchvision
