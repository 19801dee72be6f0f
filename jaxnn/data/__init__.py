"""Where examples come from, in which order, and how they reach the devices.

A source gives any example by its number and nothing else; it holds no position. The order is arithmetic
(`order.examples`): the ids of a data step are a function of (seed, data_step, global batch), whatever the number of
hosts, so that a run resumes, rewinds and re-shards without any iterator state. A loader turns ids into placed batches a
few steps ahead of the device; a source that fits on the device (`resident`) needs no loader, and only ids travel.

`Arrays` is the source for arrays, `CSV` for tables, `TextFiles` for bytes of text, `Sentences` and `Packed` for tokens
of a `Tokenizer`, `ImageFolder`, `ImageFiles`, `mnist`, `cifar` and `digits` for images, `Indexed` for whatever has a
length and an index; `read_jsonl`, `read_csv`, `read_parallel`, `read_text_folder` and `read_imdb` read `Texts`;
`mapped` passes a source through a function, `bucketed` brings examples of similar length together, `write_csv` writes
predictions down. Whatever has `__len__`, `take` and `resident` is a source too (`jaxnn.typing.Source`).
"""

from jaxnn.data import order as order
from jaxnn.data.arrays import Arrays as Arrays
from jaxnn.data.bucketing import bucketed as bucketed, epoch_order as epoch_order
from jaxnn.data.cifar import cifar as cifar, cifar_names as cifar_names, is_cifar as is_cifar, read_cifar as read_cifar
from jaxnn.data.delimited import CSVFormat as CSVFormat
from jaxnn.data.digits import digits as digits
from jaxnn.data.exporting import write_csv as write_csv
from jaxnn.data.found import stdlib_files as stdlib_files
from jaxnn.data.idx import mnist as mnist, read_idx as read_idx
from jaxnn.data.image_transforms import random_resized_crop as random_resized_crop, resize as resize
from jaxnn.data.images import ImageFiles as ImageFiles, ImageFolder as ImageFolder
from jaxnn.data.indexed import Indexed as Indexed
from jaxnn.data.loader import Loader as Loader, host_batch as host_batch, process_slice as process_slice
from jaxnn.data.mixtures import cutmix as cutmix, mixup as mixup
from jaxnn.data.packing import Packed as Packed, masked_tokens as masked_tokens
from jaxnn.data.readers import (
    Texts as Texts,
    read_csv as read_csv,
    read_imdb as read_imdb,
    read_jsonl as read_jsonl,
    read_parallel as read_parallel,
    read_text_folder as read_text_folder,
)
from jaxnn.data.tabular import CSV as CSV
from jaxnn.data.text import TextFiles as TextFiles, scoring_windows as scoring_windows
from jaxnn.data.tokenizers import Encoded as Encoded, Sentences as Sentences, Tokenizer as Tokenizer
from jaxnn.data.transforms import (
    mapped as mapped,
    normalize as normalize,
    one_hot as one_hot,
    random_crop_flip as random_crop_flip,
)
from jaxnn.data.verses import (
    Verse as Verse,
    number_verses as number_verses,
    read_verses as read_verses,
    split_chapters as split_chapters,
    write_verses as write_verses,
)
