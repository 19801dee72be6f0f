"""What a newcomer gets wrong, family by family: each is told what it was and what would be right, never a traceback of
jax, flax or NumPy alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models
from jaxnn.models import layers
from jaxnn.models.attention import attention
from jaxnn.train.command import _OURS

KEY = jax.random.key(0)
SIZES = {"vocab": 11, "layers": 1, "heads": 2, "width": 8}


def ints(*shape):
    return np.ones(shape, np.int32)


def floats(*shape):
    return np.ones(shape, np.float32)


def init(model, *args, **kwargs):
    """Traces only: nothing is compiled."""
    return jax.eval_shape(lambda: model.init({"params": KEY, "dropout": KEY}, *args, **kwargs))


def other_input(model, x, other, **kwargs):
    """Applied to `other` with parameters that were made for `x`."""
    return jax.eval_shape(lambda variables: model.apply(variables, other, **kwargs), init(model, x))


def gpt(**changes):
    return models.GPT(models.GPTConfig(**SIZES | {"length": 8} | changes))


def bert(**changes):
    return models.BERT(models.BERTConfig(**SIZES | {"length": 8, "mlp_width": 8} | changes))


def seq2seq(**changes):
    return models.Seq2Seq(models.Seq2SeqConfig(**{"vocab": 11, "embed": 8, "width": 8, "attention": 8} | changes))


def transformer(**changes):
    return models.Transformer(models.TransformerConfig(**SIZES | {"hidden": 8} | changes))


def vgg(**changes):
    return models.VGG(models.VGGConfig(**{"stages": (1, 1), "widths": (4, 4), "dense": 4} | changes))


def vit(**changes):
    return models.ViT(models.ViTConfig(**{"image": 8, "patch": 4, "layers": 1, "heads": 2, "width": 8} | changes))


def resnet():
    return models.ResNet(models.ResNetConfig(stages=(1, 1), widths=(4, 8)))


def searched(step, **changes):
    search = models.greedy_search if changes.get("beams") == 1 else models.beam_search
    options = {"batch": 2, "start": 1, "end": 2, "length": 3, "beams": 2} | changes
    if options["beams"] == 1:
        del options["beams"]
    return search(step, {"a": floats(2, 3)}, **options)


def steps(tokens, cache, i):
    return jnp.zeros((tokens.shape[0], 5)), cache


def generate(prompt=b"\1", model=None, params=None, **changes):
    return models.generate(
        model or gpt(), {} if params is None else params, prompt, **{"steps": 2, "key": KEY} | changes
    )


def attend(**given):
    q = floats(2, 4, 2, 4)
    return jax.eval_shape(lambda: attention(q, q, q, causal=True, **given))


LORA = models.LoRA(where="qkv", rank=2)
PARAMS = {"qkv": {"kernel": floats(4, 6)}}
FAMILIES = {"gpt": gpt, "bert": bert, "seq2seq": seq2seq, "transformer": transformer}
IMAGES = {"vgg": vgg, "vit": vit, "resnet": resnet, "cnn": lambda: models.CNN((4,), (4,))}

CASES = {
    "gpt, a list": (lambda: init(gpt(), [[1, 2]]), r"tokens is list \[\[1, 2\]\], no array. Tried: \[B, T\]"),
    "gpt, a text": (lambda: init(gpt(), "abc"), "tokens is str 'abc', no array"),
    "gpt, a width that is no number": (lambda: gpt(heads="2"), r"GPTConfig: heads='2'\. Tried: integers of at least 1"),
    "gpt, a width that is a truth": (lambda: gpt(heads=True), r"GPTConfig: heads=True\. Tried: integers of at least 1"),
    "gpt, a vocabulary of floats": (lambda: gpt(vocab=11.0), r"GPTConfig: vocab=11\.0\. Tried: integers"),
    "gpt, a rate as text": (lambda: gpt(dropout="0.1"), r"GPTConfig: dropout='0.1'\. Tried: a rate in \[0, 1\)"),
    "gpt, a dtype that is none": (lambda: init(gpt(matmul_dtype="bf16"), ints(2, 4)), "matmul_dtype='bf16'"),
    "gpt, a dtype of integers": (lambda: init(gpt(matmul_dtype=jnp.int32), ints(2, 4)), "Tried: a dtype of floats"),
    "gpt, fields for a config": (lambda: init(models.GPT({"vocab": 3}), ints(2, 4)), "Tried: GPTConfig"),
    "gpt, no key": (lambda: other_input(gpt(dropout=0.1), ints(2, 4), ints(2, 4), train=True), "without a key"),
    "gpt, positions of another length": (
        lambda: init(gpt(positions="rotary"), ints(2, 4), position=ints(2, 3)),
        r"GPT: position is int32\[2, 3\]\. Tried: \[2, 4\]",
    ),
    "gpt, learned positions of another length": (
        lambda: init(gpt(positions="learned"), ints(2, 4), position=ints(2, 3)),
        r"GPT: position is int32\[2, 3\]\. Tried: \[2, 4\]",
    ),
    "gpt, positions of floats": (
        lambda: init(gpt(positions="rotary"), ints(2, 4), position=floats(2, 4)),
        r"GPT: position is float32\[2, 4\]\. Tried: \[2, 4\], integers",
    ),
    "gpt, no positions": (lambda: init(gpt(), ints(2, 4), position="0123"), "position is str '0123', no array"),
    "bert, positions of another length": (
        lambda: init(bert(), ints(2, 4), position=ints(2, 3)),
        r"BERT: position is int32\[2, 3\]\. Tried: \[2, 4\]",
    ),
    "bert, positions of floats": (lambda: init(bert(), ints(2, 4), position=floats(2, 4)), "integers"),
    "bert, a list": (lambda: init(bert(), [[1, 2]]), "no array"),
    "bert, types of another shape": (lambda: init(bert(), ints(2, 4), types=ints(2, 3)), r"types are int32\[2, 3\]"),
    "bert, types of floats": (lambda: init(bert(), ints(2, 4), types=floats(2, 4)), "one integer a token"),
    "bert, no config": (lambda: init(models.BERT(None), ints(2, 4)), "config is NoneType"),
    "bert, layers as text": (lambda: bert(layers="2"), r"BERTConfig: layers='2'"),
    "rnn, a list": (lambda: init(models.RNN(models.GRUCell(4)), [[[1.0]]]), "no array"),
    "rnn, a cell's class": (lambda: init(models.RNN(models.GRUCell), floats(2, 3, 4)), "Tried: a cell"),
    "rnn, a layer for a cell": (lambda: init(models.RNN(layers.Dense(3)), floats(2, 3, 4)), "Tried: a cell"),
    "rnn, no features": (lambda: init(models.RNN(models.GRUCell(4)), floats(2, 3, 0)), r"Tried: \[B, T, E\]"),
    "rnn, nothing unrolled": (lambda: init(models.RNN(models.GRUCell(4), unroll=0), floats(2, 3, 4)), "unroll=0"),
    "rnn, half a feature": (lambda: init(models.RNN(models.GRUCell(4.5)), floats(2, 3, 4)), r"GRUCell: features=4\.5"),
    "seq2seq, a list": (lambda: init(seq2seq(), [[1]], [[1]]), r"Seq2Seq: source is list .*no array"),
    "seq2seq, a cell's name": (lambda: seq2seq(cell="gru"), "Tried: a class of cells. Write models.GRUCell"),
    "seq2seq, a cell": (lambda: seq2seq(cell=models.GRUCell(8)), "Tried: a class of cells"),
    "seq2seq, a size as text": (lambda: seq2seq(embed="8"), r"Seq2SeqConfig: embed='8'"),
    "side by side, one sequence": (lambda: init(models.SideBySide(seq2seq(), 2), ints(4)), r"Tried: \[B, 2 \+ T\]"),
    "side by side, no target": (lambda: init(models.SideBySide(transformer(), 4), ints(2, 4)), r"Tried: \[B, 4 \+ T\]"),
    "transformer, a size as text": (lambda: transformer(width="8"), r"TransformerConfig: width='8'"),
    "transformer, buckets as text": (lambda: transformer(buckets="32"), r"TransformerConfig: buckets='32'"),
    "transformer, a rate as text": (lambda: transformer(dropout="x"), r"TransformerConfig: dropout='x'"),
    "vgg, one number of stages": (lambda: vgg(stages=2), r"stages=2, widths=\(4, 4\)"),
    "vgg, an unknown form": (lambda: init(vgg(form="x"), floats(2, 8, 8, 3)), r"layers.Conv: form='x' is unknown"),
    "cnn, no images": (lambda: init(IMAGES["cnn"](), floats(0, 8, 8, 3)), "no image"),
    "cnn, classes as text": (lambda: models.CNN(classes="10"), r"CNN: classes='10'"),
    "cnn, one channel count": (lambda: models.CNN(channels=4), r"CNN: channels=4\. Tried: a width a layer"),
    "cnn, other channels": (
        lambda: other_input(IMAGES["cnn"](), floats(2, 8, 8, 3), floats(2, 8, 8, 5)),
        r"x is float32\[2, 8, 8, 5\] for parameters of 3 inputs",
    ),
    "mlp, one number": (lambda: models.MLP(3), r"MLP: features=3\. Tried: a width a layer"),
    "mlp, half a width": (lambda: models.MLP((3.5,)), r"MLP: features=\(3\.5,\)"),
    "mlp, a text": (lambda: init(models.MLP((3,)), "abc"), "no array"),
    "mlp, a scalar": (lambda: init(models.MLP((3,)), np.float32(1)), r"x is float32\[\]\. Tried: \[B, \.\.\.\]"),
    "mlp, another width": (
        lambda: other_input(models.MLP((4, 3)), floats(2, 3), floats(2, 5)),
        r"x is float32\[2, 5\] for parameters of 3 inputs",
    ),
    "mlp, an activation's name": (lambda: models.MLP((3,), activation="relu"), "Write jax.nn.relu"),
    "lora, a rank as text": (lambda: models.LoRA(rank="8"), "Tried: rank >= 1"),
    "lora, no number": (lambda: models.LoRA(alpha=float("nan")), "Tried: rank >= 1 and alpha > 0"),
    "lora, no expression": (lambda: models.LoRA(where=None), "where=None is no regular expression"),
    "lora, a seed for a key": (lambda: models.init_lora(3, PARAMS, LORA), r"key is int 3\. Tried: a typed key"),
    "lora, no spec": (lambda: models.init_lora(KEY, PARAMS, None), r"lora: spec is NoneType None\. Tried: a LoRA\."),
    "lora, fields for a spec": (lambda: models.apply_lora(PARAMS, {}, {"rank": 2}), "spec is dict .*Tried: a LoRA"),
    "lora, the class": (lambda: models.merge_lora(PARAMS, {}, models.LoRA), r"Write models\.LoRA\(rank=8\)"),
    "lora, a rank beyond the parameter's": (
        lambda: models.init_lora(KEY, PARAMS, models.LoRA(where="qkv", rank=7)),
        r"rank=7 for leaf 'qkv/kernel' float32\[4, 6\]\. Tried: at most 6",
    ),
    "lora, kept of another model": (
        lambda: models.unmerge_lora(PARAMS, {"qkv/kernel": floats(4, 5)}),
        r"kept has float32\[4, 5\] for 'qkv/kernel' float32\[4, 6\]",
    ),
    "lora, nothing kept": (lambda: models.unmerge_lora(PARAMS, None), "Tried: what merge_lora gave second"),
    "attention, a mask that is none": (lambda: attend(mask="x"), r"mask is str 'x', no array\. Tried: \[2, 4\]"),
    "attention, slopes as a list": (lambda: attend(alibi=[0.5, 0.25]), r"alibi is list .*no array\. Tried: \[2\]"),
    "attention, a bias that is none": (lambda: attend(bias=3), "bias is int 3, no array"),
    "attention, offsets that are none": (lambda: attend(relative={}), "relative is dict .*no array"),
    "attention, half a window": (lambda: attend(window=1.5), r"window=1\.5\. Tried: an integer of at least 1"),
    "attention, windows": (lambda: attend(window=ints(2)), r"window=.*Tried: an integer of at least 1"),
    "attention, a form's number": (lambda: attend(form=ints(2)), r"form=array.*Tried: plain"),
    "attention, a rate as text": (lambda: attend(dropout="x", key=KEY), r"dropout='x'.*Tried: a rate in \[0, 1\)"),
    "attention, a rate for each": (lambda: attend(dropout=floats(2), key=KEY), r"dropout=.*Tried: a rate in \[0, 1\)"),
    "rnn, lengths as a list": (
        lambda: init(models.RNN(models.GRUCell(4)), floats(2, 3, 4), [1, 2]),
        r"RNN: lengths is list \[1, 2\], no array\. Tried: \[B\]",
    ),
    "rnn, half a length": (
        lambda: init(models.RNN(models.GRUCell(4)), floats(2, 3, 4), floats(2)),
        r"RNN: lengths float32\[2\] for 2 examples of 3 positions\. Tried: \[B\], integers",
    ),
    "rnn, a text that says what counts": (
        lambda: init(models.RNN(models.GRUCell(4)), floats(2, 3, 4), valid="x"),
        r"RNN: valid is str 'x', no array\. Tried: \[B, T\]",
    ),
    "bert, one type": (lambda: init(bert(), ints(2, 4), types=0), r"types is int 0, no array\. Tried: \[B, T\]"),
    "bert, one place": (lambda: init(bert(head="mlm"), ints(2, 4), places=0), "places is int 0, no array"),
    "cnn, too small": (
        lambda: init(models.CNN((4, 4)), floats(2, 9, 12, 3)),
        r"CNN: x is float32\[2, 9, 12, 3\]\. Tried: at least 10 pixels a side",
    ),
    "cnn, no channels": (lambda: init(models.CNN((4,)), floats(2, 8, 8, 0)), r"CNN: x is float32\[2, 8, 8, 0\]"),
    "generate, no parameters": (generate, "generate: the parameters are not this model's"),
    "generate, variables": (lambda: generate(params={"params": {}}), "parameters are not this model's"),
    "generate, a BERT": (lambda: generate(model=bert()), "generate: model is BERT. Tried: models.GPT"),
    "generate, a temperature as text": (lambda: generate(temperature="hot"), "a finite temperature"),
    "generate, a stop as text": (lambda: generate(stop="."), "whole steps"),
    "generate, a seed for a key": (lambda: generate(key=3), r"key is int 3\. Tried: a typed key"),
    "generate, no prompts": (lambda: generate([]), "no prompts|prompt of shape"),
    "translate, no parameters": (
        lambda: models.translate(seq2seq(), {}, ints(2, 3), length=4),
        "translate: the parameters are not this model's",
    ),
    "translate, half a length": (lambda: models.translate(seq2seq(), {}, ints(2, 3), length=4.5), r"length=4\.5"),
    "translate, no beams": (lambda: models.translate(transformer(), {}, ints(2, 3), length=4, beams=0), "beams=0"),
    "translate, rows of other lengths": (
        lambda: models.translate(transformer(), {}, [[1, 2], [3]], length=4),
        r"rows of other lengths. Tried: \[B, S\]. Pad them by 0",
    ),
    "translate, a GPT": (lambda: models.translate(gpt(), {}, ints(2, 3), length=4), "write models.generate"),
    "beams, starts": (lambda: searched(steps, start=ints(3)), r"start is int32\[3\] for 2 examples"),
    "beams, no cache": (lambda: searched(lambda t, c, i: steps(t, c, i)[0]), r"Return \(logits, cache\)"),
    "beams, examples without beams": (lambda: searched(lambda t, c, i: (jnp.zeros((2, 5)), c)), "one row a token"),
    "beams, a time axis": (lambda: searched(lambda t, c, i: (jnp.zeros((4, 1, 5)), c)), "Leave the time axis out"),
    "beams, another cache": (lambda: searched(lambda t, c, i: (steps(t, c, i)[0], {"b": c["a"]})), "a cache of .*'b'"),
    "greedy, another cache": (
        lambda: searched(lambda t, c, i: (steps(t, c, i)[0], {"a": c["a"][:, :2]}), beams=1),
        "greedy_search: step gave a cache",
    ),
    "load, nothing": (lambda: models.load(None), r"folder is NoneType None\. Tried: a path"),
    "torchvision, nothing": (lambda: models.from_torchvision(resnet(), None), "Tried: tensors by name"),
}
CASES |= {
    f"{name}, a list": (lambda family=family: init(family(), [[[[1.0]]]]), r"no array. Tried: \[B, H, W, ")
    for name, family in IMAGES.items()
}
CASES |= {
    f"{name}, complex images": (
        lambda family=family: init(family(), np.ones((2, 8, 8, 3), np.complex64)),
        r"x is complex64\[2, 8, 8, 3\]\. Tried: real numbers",
    )
    for name, family in IMAGES.items()
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_told_with_what_would_be_right(case):
    call, message = CASES[case]
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        call()
    assert _OURS.match(str(raised.value))
    assert "Tried: " in str(raised.value)


def test_numbers_may_be_numpys():
    assert gpt(heads=np.int64(2), dropout=np.float32(0.5)).config.heads == 2


def test_parameters_of_another_size_are_not_the_models():
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), init(gpt(width=4), ints(1, 4))["params"])
    with pytest.raises(ValueError, match=r"generate: the parameters are not this model's \(.*\(11, 8\).*\(11, 4\)"):
        generate(params=params)


def test_a_bad_call_of_attention_is_a_line_on_the_command_line():
    with pytest.raises(ValueError, match=r"segment int32\[2, 3\]") as raised:
        init(gpt(), ints(2, 4), segment=ints(2, 3))
    assert _OURS.match(str(raised.value))
