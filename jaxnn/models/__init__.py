"""Model families in Flax Linen, one file each, over the shared blocks in `layers`.

Linen because `init` and `apply` are pure and its dispatch was the fastest measured. A model names its axes through
`sharding.constrain` and declares each parameter's role, and knows nothing else of devices, optimizers or precision
policies; families share little, so that each file reads as the whole model.
"""

from jaxnn.models import bert as bert
from jaxnn.models import cnn as cnn
from jaxnn.models import gpt as gpt
from jaxnn.models import inception as inception
from jaxnn.models import layers as layers
from jaxnn.models import mlp as mlp
from jaxnn.models import resnet as resnet
from jaxnn.models import seq2seq as seq2seq
from jaxnn.models import transformer as transformer
from jaxnn.models import vgg as vgg
from jaxnn.models import vit as vit
from jaxnn.models.beam import beam_search as beam_search
from jaxnn.models.beam import greedy_search as greedy_search
from jaxnn.models.beam import translate as translate
from jaxnn.models.bert import BERT as BERT
from jaxnn.models.bert import BERTConfig as BERTConfig
from jaxnn.models.cnn import CNN as CNN
from jaxnn.models.generation import generate as generate
from jaxnn.models.gpt import GPT as GPT
from jaxnn.models.gpt import GPTConfig as GPTConfig
from jaxnn.models.gpt import stack_layers as stack_layers
from jaxnn.models.gpt import unstack_layers as unstack_layers
from jaxnn.models.inception import Inception as Inception
from jaxnn.models.inception import InceptionConfig as InceptionConfig
from jaxnn.models.lora import LoRA as LoRA
from jaxnn.models.lora import apply_lora as apply_lora
from jaxnn.models.lora import init_lora as init_lora
from jaxnn.models.lora import merge_lora as merge_lora
from jaxnn.models.lora import unmerge_lora as unmerge_lora
from jaxnn.models.mlp import MLP as MLP
from jaxnn.models.resnet import ResNet as ResNet
from jaxnn.models.resnet import ResNetConfig as ResNetConfig
from jaxnn.models.rnn import RNN as RNN
from jaxnn.models.rnn import GRUCell as GRUCell
from jaxnn.models.rnn import LSTMCell as LSTMCell
from jaxnn.models.rnn import SimpleCell as SimpleCell
from jaxnn.models.seq2seq import AdditiveAttention as AdditiveAttention
from jaxnn.models.seq2seq import Seq2Seq as Seq2Seq
from jaxnn.models.seq2seq import Seq2SeqConfig as Seq2SeqConfig
from jaxnn.models.seq2seq import SideBySide as SideBySide
from jaxnn.models.transformer import Transformer as Transformer
from jaxnn.models.transformer_config import TransformerConfig as TransformerConfig
from jaxnn.models.vgg import VGG as VGG
from jaxnn.models.vgg import VGGConfig as VGGConfig
from jaxnn.models.vit import ViT as ViT
from jaxnn.models.vit import ViTConfig as ViTConfig
from jaxnn.models.weights import load as load
from jaxnn.models.weights import save as save
from jaxnn.models.weights.vision import from_torchvision as from_torchvision
from jaxnn.models.weights.vision import to_torchvision as to_torchvision
