"""What is refused, in words that a user can act on, and before anything is compiled.

Each case is a call, the type of its error and what its message must say. All messages begin with the function or object
that they are about and are one line; none is a stack trace of somebody else's.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnn import data, losses, metrics, models, parallel, train

QUIET = train.Log(progress=False)
N = 16
X = np.linspace(-1, 1, N * 3, dtype=np.float32).reshape(N, 3)
Y = X[:, :1].copy()
SOURCE = data.Arrays(X, Y)
TASK = train.supervised(models.MLP((1,)), losses.mse, {"mae": metrics.mae})
MLP = models.MLP((1,))


class Torchlike:
    """What somebody brings from another library."""

    def step(self):
        pass

    def zero_grad(self):
        pass


class TorchData:
    """A data set as another library has them: an example at a time."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], Y[i]


class NoResident(data.Arrays):
    def resident(self):
        return None


class Linear(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


NNX = Linear(nnx.Rngs(0))


class Zero(train.Hook):
    def every(self, plan):
        return 0


class Watch(train.Hook):
    def every(self, plan):
        return 1


def fit(task=TASK, tx=None, source=SOURCE, **changes):
    tx = optax.sgd(0.1) if tx is None else tx
    keywords = {"batch_size": 4, "steps": 4, "log": QUIET} | changes
    return train.fit(task, tx, source, **{k: v for k, v in keywords.items() if v is not OMIT})


OMIT = object()


def mse_task(**keywords):
    return train.supervised(MLP, losses.mse, **keywords)


def injected(rate):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


def growing_state():
    """An optimizer whose state changes its shape."""
    return optax.GradientTransformation(
        lambda params: jnp.zeros(1), lambda updates, state, params=None: (updates, jnp.zeros(2))
    )


def update_of_other_shape():
    return optax.GradientTransformation(
        lambda params: (), lambda updates, state, params=None: (updates["head"]["wrong"], state)
    )


CASES = {
    # data
    "lengths differ": (
        lambda: data.Arrays(X, Y[:9]),
        ValueError,
        r"data\.Arrays: 'x' has 16 examples .* and 'y' has 9",
    ),
    "no examples": (
        lambda: data.Arrays(X[:0], Y[:0]),
        ValueError,
        r"data\.Arrays: 'x' float32\[0, 3\] has no examples",
    ),
    "nan": (
        lambda: data.Arrays(np.where(X > 0.9, np.nan, X), Y),
        ValueError,
        r"data\.Arrays: 'x' .* has nan in example 15",
    ),
    "infinity": (
        lambda: data.Arrays(X, np.full((N, 1), np.inf)),
        ValueError,
        r"data\.Arrays: 'y' .* has inf in example 0",
    ),
    "objects": (
        lambda: data.Arrays(np.array([{}, None]), Y),
        TypeError,
        r"data\.Arrays: 'x' object\[2\] holds Python objects",
    ),
    "text": (lambda: data.Arrays(X, np.array(["a"] * N)), TypeError, r"data\.Arrays: 'y' .* holds text"),
    "ragged": (lambda: data.Arrays([[1.0], [1.0, 2.0]]), ValueError, r"data\.Arrays: 'x' of type list is no array"),
    "a scalar": (lambda: data.Arrays(3.0), ValueError, r"data\.Arrays: 'x' float64\[\] is a scalar"),
    "ids that overflow": (
        lambda: data.Arrays(np.array([1, 2**40])),
        ValueError,
        r"data\.Arrays: 'x' .* has 1099511627776 in example 1, out of the range of int32",
    ),
    "a reserved name": (lambda: data.Arrays(X, Y, mask=Y), ValueError, r"data\.Arrays: the name 'mask' is reserved"),
    # what fit is given: task, optimizer, data, strategy
    "a raw module": (
        lambda: fit(task=MLP),
        TypeError,
        r"train\.fit: the first argument must be a Task, got MLP\. Make one: train\.supervised",
    ),
    "an optimizer that is a number": (
        lambda: fit(tx=0.1),
        TypeError,
        r"train\.fit: the optimizer must be an optax\.GradientTransformation .*, got 0\.1\. Try optax\.adam\(1e-3\)",
    ),
    "the function that makes an optimizer": (
        lambda: fit(tx=optax.adam),
        TypeError,
        r"train\.fit: the optimizer must be .*, got function\. You passed what makes one; call it",
    ),
    "an optimizer of another library": (
        lambda: fit(tx=Torchlike()),
        TypeError,
        r"train\.fit: the optimizer must be .*, got Torchlike",
    ),
    "an optimizer whose update fails": (
        lambda: fit(tx=update_of_other_shape()),
        ValueError,
        r"train\.fit: the optimizer cannot be updated with gradients of these parameters: KeyError: 'wrong'",
    ),
    "an optimizer whose state grows": (
        lambda: fit(tx=growing_state()),
        TypeError,
        r"the step changes the state .*opt_state: float32\[1\] against float32\[2\]",
    ),
    "raw arrays": (
        lambda: fit(source=X),
        TypeError,
        r"train\.fit: the data must be a data source, got float32\[16, 3\]\. Wrap arrays: data\.Arrays\(x, y\)",
    ),
    "a tuple of arrays": (
        lambda: fit(source=(X, Y)),
        TypeError,
        r"train\.fit: the data must be a data source, got tuple\. Wrap arrays",
    ),
    "a data set that gives one example": (
        lambda: fit(source=TorchData()),
        TypeError,
        r"train\.fit: the data must be a data source, got TorchData\. It lacks take and resident\. A source has "
        r"__len__\(\) -> examples, take\(ids\) -> ",
    ),
    "a source's class": (
        lambda: fit(source=data.Arrays),
        TypeError,
        r"train\.fit: the data must be a data source, got the class Arrays",
    ),
    "a strategy's function": (
        lambda: fit(strategy=parallel.replicate),
        TypeError,
        r"train\.fit: strategy must be .*, got replicate\. Call it: parallel\.replicate\(\)",
    ),
    "a strategy's class": (
        lambda: fit(strategy=type(parallel.single())),
        TypeError,
        r"train\.fit: strategy must be .*, got Single\. Call it: parallel\.single\(\)",
    ),
    "a strategy's name": (
        lambda: fit(strategy="replicate"),
        TypeError,
        r"train\.fit: strategy must be .*, got 'replicate'\. Try parallel\.replicate\(\)",
    ),
    "too many devices": (
        lambda: parallel.replicate(99),
        ValueError,
        r"parallel\.replicate: 99 devices were asked for, 8 cpu devices are there",
    ),
    # numbers
    "a batch larger than the data": (
        lambda: fit(batch_size=17),
        ValueError,
        r"train\.fit: batch_size 17 is larger than the data \(16 examples\)\. Use at most 16",
    ),
    "batch 0": (lambda: fit(batch_size=0), ValueError, r"train\.fit: batch_size must be at least 1, got 0"),
    "batch 2.5": (
        lambda: fit(batch_size=2.5),
        TypeError,
        r"train\.fit: batch_size must be an integer, got 2\.5 of type float",
    ),
    "a batch that is text": (
        lambda: fit(batch_size="32"),
        TypeError,
        r"train\.fit: batch_size must be an integer, got '32' of type str",
    ),
    "a batch that is a truth": (
        lambda: fit(batch_size=True),
        TypeError,
        r"train\.fit: batch_size must be an integer, got True",
    ),
    "a batch that does not divide": (
        lambda: fit(batch_size=12, strategy=parallel.replicate()),
        ValueError,
        r"train\.fit: a global batch of 12 examples does not divide over 8 devices\. Use a multiple of 8: 16",
    ),
    "negative steps": (lambda: fit(steps=-1), ValueError, r"train\.fit: steps must be at least 1, got -1"),
    "no steps": (lambda: fit(steps=0), ValueError, r"train\.fit: steps must be at least 1, got 0"),
    "half a step": (lambda: fit(steps=1.5), TypeError, r"train\.fit: steps must be an integer, got 1\.5"),
    "neither steps nor epochs": (
        lambda: fit(steps=None),
        ValueError,
        r"train\.fit: give steps= or epochs=, got neither",
    ),
    "both steps and epochs": (lambda: fit(epochs=1), ValueError, r"train\.fit: give steps= or epochs=, got both"),
    "no epochs": (lambda: fit(steps=None, epochs=0), ValueError, r"train\.fit: epochs must be at least 1, got 0"),
    "a negative seed": (lambda: fit(seed=-1), ValueError, r"train\.fit: seed must be at least 0, got -1"),
    "a huge seed": (lambda: fit(seed=2**32), ValueError, r"train\.fit: seed must be below 2\*\*32, got 4294967296"),
    "a seed that is a key": (lambda: fit(seed="0"), TypeError, r"train\.fit: seed must be an integer, got '0'"),
    # shapes
    "output against target": (
        lambda: fit(source=data.Arrays(X, Y[:, 0])),
        ValueError,
        r"losses\.mse: outputs float32\[4, 1\] against targets float32\[4\]\..*Write targets\[\.\.\., None\]",
    ),
    "data without targets": (
        lambda: fit(source=data.Arrays(X)),
        ValueError,
        r"Task: the batch has no 'y'; it has .*'x'",
    ),
    "data without inputs": (
        lambda: fit(source=data.Arrays({"features": X, "y": Y})),
        ValueError,
        r"Task: the batch has no 'x'; it has .*'features'",
    ),
    "wrong rank for the model": (
        lambda: fit(task=train.supervised(models.CNN((4,), classes=2), losses.cross_entropy)),
        ValueError,
        r"layers\.Conv: .*float32\[4, 3\]|models\.CNN: .*float32\[4, 3\]",
    ),
    "float classes": (
        lambda: fit(task=train.supervised(models.MLP((3,)), losses.cross_entropy), source=data.Arrays(X, Y[:, 0])),
        TypeError,
        r"losses\.cross_entropy: logits .* against targets float32\[4\]",
    ),
    "a model that cannot take these inputs": (
        lambda: fit(
            task=train.from_functions(lambda key, x: {"w": jnp.zeros((5, 1))}, lambda p, x: x @ p["w"], losses.mse)
        ),
        ValueError,
        r"train\.fit: the loss fails on a batch of x float32\[4, 3\], y float32\[4, 1\]: .*3.*5",
    ),
    "an init that fails": (
        lambda: fit(task=train.from_functions(lambda key, x: {"w": jnp.zeros(x["width"])}, lambda p, x: x, losses.mse)),
        ValueError,
        r"train\.fit: the model cannot be initialised for a batch of x float32\[4, 3\], y float32\[4, 1\]: ",
    ),
    "integer parameters": (
        lambda: fit(
            task=train.from_functions(lambda key, x: {"w": jnp.zeros((3, 1), int)}, lambda p, x: x @ p["w"], losses.mse)
        ),
        ValueError,
        r"train\.fit: parameter 'w' is int32\[3, 1\], which has no gradient\. Make it float32",
    ),
    "a loss that averages": (
        lambda: fit(task=train.supervised(MLP, lambda o, t: jnp.mean((o - t) ** 2))),
        ValueError,
        r"Task: the loss gives float32\[\] for 4 examples.*Do not average",
    ),
    "a metric of other shape": (
        lambda: fit(task=train.supervised(MLP, losses.mse, {"top": metrics.top_k(2)})),
        ValueError,
        r"metrics\.top_k: k=2 for logits float32\[4, 1\]",
    ),
    # making tasks
    "an NNX module": (
        lambda: train.supervised(NNX, losses.mse),
        TypeError,
        r"train\.supervised: expected a flax\.linen\.Module, got Linear\. For an NNX module write train\.from_nnx",
    ),
    "a module's class": (
        lambda: train.supervised(models.MLP, losses.mse),
        TypeError,
        r"train\.supervised: expected a flax\.linen\.Module, got the class MLP",
    ),
    "a loss that is a number": (
        lambda: train.supervised(MLP, 0.5),
        TypeError,
        r"train\.supervised: loss must be a function .*, got 0\.5",
    ),
    "a metric called loss": (
        lambda: mse_task(metrics={"loss": metrics.mae}),
        ValueError,
        r"Task: a metric cannot be called 'loss'",
    ),
    "a metric called val_": (
        lambda: mse_task(metrics={"val_mae": metrics.mae}),
        ValueError,
        r"Task: a metric cannot be called 'val_mae'",
    ),
    "a metric that is a name": (
        lambda: mse_task(metrics={"mae": "mae"}),
        TypeError,
        r"metrics\.as_metric: 'mae' is no metric",
    ),
    "functions that are none": (
        lambda: train.from_functions(None, lambda p, x: x, losses.mse),
        TypeError,
        r"train\.from_functions: init must be a function, got None",
    ),
    "a maker that makes no module": (
        lambda: train.from_nnx(lambda rngs: 3, losses.mse),
        TypeError,
        r"train\.from_nnx: make\(rngs\) gave int, not an nnx\.Module",
    ),
    "an NNX module instead of its maker": (
        lambda: train.from_nnx(NNX, losses.mse),
        TypeError,
        r"train\.from_nnx: make must be a function of nnx\.Rngs that gives a module, got Linear",
    ),
    # validation
    "validation of another shape": (
        lambda: fit(validation=data.Arrays(X[:, :2], Y)),
        ValueError,
        r"train\.fit: array 'x' of the validation data is float32\[2\] an example, of the training data float32\[3\]",
    ),
    "validation of another dtype": (
        lambda: fit(validation=data.Arrays(X, Y.astype(int))),
        ValueError,
        r"train\.fit: array 'y' of the validation data is int32\[1\] an example, of the training data float32\[1\]",
    ),
    "validation without targets": (
        lambda: fit(validation=data.Arrays(X)),
        ValueError,
        r"train\.fit: array 'y' of the validation data is absent",
    ),
    "validation that is an array": (
        lambda: fit(validation=X),
        TypeError,
        r"train\.fit: validation must be a data source, got float32\[16, 3\]",
    ),
    "validate_every without validation": (
        lambda: fit(validate_every=2),
        ValueError,
        r"train\.fit: validate_every=2 without validation data",
    ),
    "validate_every 0": (
        lambda: fit(validation=SOURCE, validate_every=0),
        ValueError,
        r"train\.fit: validate_every must be at least 1, got 0",
    ),
    # hooks
    "a hook's class": (
        lambda: fit(hooks=[train.EarlyStopping]),
        TypeError,
        r"hooks must be train\.Hook objects, got the class EarlyStopping\. Call it: EarlyStopping\(\.\.\.\)",
    ),
    "a function as a hook": (
        lambda: fit(hooks=[print]),
        TypeError,
        r"train\.fit: hooks must be train\.Hook objects, got builtin_function_or_method\. Subclass train\.Hook",
    ),
    "a hook without a list": (
        lambda: fit(hooks=Watch()),
        TypeError,
        r"train\.fit: hooks must be a list of train\.Hook objects, got Watch\. Write hooks=\[\.\.\.\]",
    ),
    "two hooks of one name": (
        lambda: fit(hooks=[Watch(), Watch()]),
        ValueError,
        r"train\.fit: several hooks are called \['Watch'\]",
    ),
    "a hook that fires every 0 steps": (
        lambda: fit(hooks=[Zero()]),
        ValueError,
        r"train\.fit: hook Zero: every\(plan\) must be at least 1, got 0",
    ),
    "a value that nothing reports": (
        lambda: fit(hooks=[train.EarlyStopping("accuracy")]),
        ValueError,
        r"train\.fit: hook EarlyStopping\(accuracy\) monitors 'accuracy'.*\['loss', 'mae'\]",
    ),
    "a validation value that nothing reports": (
        lambda: fit(hooks=[train.EarlyStopping("val_accuracy")], validation=SOURCE),
        ValueError,
        r"monitors 'val_accuracy', which nothing reports\. .*\['loss', 'mae', 'val_loss', 'val_mae'\]",
    ),
    "validation values without validation": (
        lambda: fit(hooks=[train.EarlyStopping()]),
        ValueError,
        r"train\.EarlyStopping: monitor='val_loss' needs validation data\. Pass validation= to fit",
    ),
    "no patience": (lambda: train.EarlyStopping("loss", patience=0), ValueError, r"train\.EarlyStopping: patience=0"),
    "a factor above 1": (
        lambda: train.ReduceOnPlateau("loss", factor=2.0),
        ValueError,
        r"train\.ReduceOnPlateau: factor=2\.0",
    ),
    "a rate that is not in the state": (
        lambda: fit(hooks=[train.ReduceOnPlateau("loss")]),
        ValueError,
        r"train\.ReduceOnPlateau: .* has 0 hyperparameters called 'lr', .*Write optim\.adam\(1e-3\), or optax\.inject",
    ),
    "a rate that follows a schedule": (
        lambda: fit(tx=injected(optax.linear_schedule(1.0, 0.1, 5)), hooks=[train.ReduceOnPlateau("loss")]),
        ValueError,
        r"train\.ReduceOnPlateau: 'learning_rate' follows a schedule",
    ),
    # settings
    "log that is a number": (
        lambda: fit(log=10),
        TypeError,
        r"train\.fit: log must be a train\.Log, got 10\. Write log=train\.Log\(\.\.\.\)",
    ),
    "log that is False": (lambda: fit(log=False), TypeError, r"train\.fit: log must be a train\.Log, got False"),
    "a period of 0": (
        lambda: fit(log=train.Log(every=0)),
        ValueError,
        r"train\.fit: log\.every must be at least 1, got 0",
    ),
    "no checkpoint kept": (
        lambda: fit(save=train.Checkpointing(keep=0)),
        ValueError,
        r"train\.fit: save\.keep must be at least 1, got 0",
    ),
    "checkpoints without a folder": (
        lambda: fit(save=train.Checkpointing(every=5)),
        ValueError,
        r"train\.fit: save= has nowhere to write\. Pass out=",
    ),
    "no minutes": (
        lambda: fit(save=train.Checkpointing(minutes=0)),
        ValueError,
        r"train\.fit: save\.minutes must be positive, got 0",
    ),
    "a best that nothing reports": (
        lambda: fit(save=train.Checkpointing(best="val_loss"), out="not-made"),
        ValueError,
        r"train\.fit: save\.best is 'val_loss', which nothing reports",
    ),
    "a dispatch of no steps": (
        lambda: fit(dispatch=train.Dispatch(most=0)),
        ValueError,
        r"train\.fit: dispatch\.most must be at least 1, got 0",
    ),
    "data that cannot live on the device": (
        lambda: fit(source=NoResident(X, Y), dispatch=train.Dispatch(resident=True)),
        ValueError,
        r"train\.fit: NoResident has no form that lives on the device",
    ),
    "TensorBoard without a folder": (
        lambda: fit(log=train.Log(tensorboard=True)),
        ValueError,
        r"train\.fit: log\.tensorboard writes into the run's folder, and there is none\. Pass out=",
    ),
    "resume without a folder": (lambda: fit(resume=True), ValueError, r"train\.fit: resume=True needs out="),
    "several devices for a single one": (
        lambda: parallel.by_name("single", 8),
        ValueError,
        r"parallel\.by_name: 'single' uses one device, 8 were asked for\. Write 'replicate' or 'pmap'\.",
    ),
    # the step alone
    "batches of unequal arrays": (
        lambda: train.make_train_step(TASK, optax.sgd(0.1), strategy=parallel.single())(None, {"x": X, "y": Y[:3]}),
        ValueError,
        r"batch: every array needs the same leading example axis; got shapes \{'x': \(16, 3\), 'y': \(3, 1\)\}",
    ),
    "a batch of the step that does not divide": (
        lambda: train.make_train_step(TASK, optax.sgd(0.1), strategy=parallel.replicate())(
            None, {"x": X[:9], "y": Y[:9]}
        ),
        ValueError,
        r"make_train_step: a global batch of 9 examples does not divide over 8 devices",
    ),
}


def refused(count_compiles, call, error, message):
    jax.clear_caches()  # or a program that an earlier test compiled would not be counted
    with count_compiles() as seen, pytest.raises(error, match=message) as caught:
        call()
    text = str(caught.value)
    assert seen.compiles == [], f"compiled {seen.compiles} before: {text}"
    assert type(caught.value) is error
    assert re.match(r"[\w.]+( step)?: ", text), text
    assert "\n" not in text
    assert len(text) < 600, text
    return text


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_it_is_refused_with_a_message_and_before_compiling(case, count_compiles):
    refused(count_compiles, *CASES[case])


# Run folders


@pytest.fixture
def trained(tmp_path, no_report):
    return fit(out=tmp_path / "run", config={"width": 3})


def test_a_run_folder_that_is_a_file(tmp_path, count_compiles):
    (tmp_path / "f").write_text("x")
    refused(
        count_compiles,
        lambda: fit(out=tmp_path / "f"),
        ValueError,
        r"runs\.RunFolder: .*/f is a file\. Give out= a folder\.",
    )
    refused(
        count_compiles,
        lambda: fit(out=tmp_path / "f" / "run"),
        ValueError,
        r"runs\.RunFolder\.create: cannot write to .*/f/run: .*Give out= a folder that you may write to\.",
    )


def test_a_run_folder_with_something_else_in_it(tmp_path, count_compiles):
    (tmp_path / "thesis.tex").write_text("x")
    refused(
        count_compiles,
        lambda: fit(out=tmp_path),
        ValueError,
        r"is not empty and holds no run .*; found thesis\.tex\. Give out= a new or empty folder\.",
    )
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_folder_that_is_used(trained, count_compiles):
    before = {p: p.read_bytes() for p in trained.folder.path.rglob("*") if p.is_file()}
    refused(
        count_compiles,
        lambda: fit(out=trained.folder.path),
        ValueError,
        r"already holds a run\. Give resume=True to go on, or another out=",
    )
    assert {p: p.read_bytes() for p in trained.folder.path.rglob("*") if p.is_file()} == before


def test_nothing_to_resume(tmp_path, count_compiles):
    refused(
        count_compiles,
        lambda: fit(out=tmp_path / "no", resume=True),
        ValueError,
        r"nothing to resume from in .*/no: the folder does not exist\. Start the run without resume=True\.",
    )
    refused(
        count_compiles,
        lambda: fit(out=tmp_path, resume=True),
        ValueError,
        r"nothing to resume from in .*: it holds no config\.json",
    )


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"config": {"width": 4}}, [r"config\.width: 3 -> 4"]),
        ({"config": {"width": 3, "depth": 1}}, [r"config\.depth: absent -> 1"]),
        ({"seed": 1}, [r"fit\.seed: 0 -> 1"]),
        ({"batch_size": 8, "seed": 2}, [r"fit\.batch_size: 4 -> 8", r"fit\.seed: 0 -> 2"]),
        ({"source": data.Arrays(X[:12], Y[:12])}, [r"fit\.examples: 16 -> 12"]),
        ({"log": train.Log(every=3, progress=False)}, [r"fit\.log_every: 1 -> 3"]),
        ({"dispatch": train.Dispatch(most=3)}, [r"fit\.k_max: \d+ -> 3"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_resume_with_another_config_names_the_fields(trained, changes, fields, count_compiles):
    keywords = {"config": {"width": 3}, "steps": 8} | changes
    text = refused(
        count_compiles,
        lambda: fit(out=trained.folder.path, resume=True, **keywords),
        ValueError,
        r"started with another config",
    )
    for field in fields:
        assert re.search(field, text)
    assert "Resume with the old values, or give another out=" in text


@pytest.mark.parametrize(
    ("changes", "leaf"),
    [
        ({"tx": optax.adam(0.1)}, r"opt_state/0/count: int32\[\] is only in the second"),
        (
            {"task": train.supervised(models.MLP((7, 1)), losses.mse, {"mae": metrics.mae})},
            r"params/head/kernel: float32\[3, 1\] against float32\[7, 1\]",
        ),
    ],
    ids=["optimizer", "model"],
)
def test_a_resume_with_another_model_or_optimizer_names_the_leaves(trained, changes, leaf, count_compiles):
    before = {p: p.read_bytes() for p in trained.folder.path.rglob("*") if p.is_file()}
    keywords = {"config": {"width": 3}, "steps": 8} | changes
    text = refused(count_compiles, lambda: fit(out=trained.folder.path, resume=True, **keywords), ValueError, leaf)
    assert "Resume with the model, optimizer and precision that it was saved with" in text
    assert {p: p.read_bytes() for p in trained.folder.path.rglob("*") if p.is_file()} == before


def test_a_config_that_is_not_json(tmp_path, count_compiles):
    refused(
        count_compiles,
        lambda: fit(out=tmp_path / "r", config={"model": MLP}),
        TypeError,
        r"runs\.plain_config: field 'config\.model' is MLP .* not JSON",
    )
    assert not (tmp_path / "r").exists()


def test_what_is_refused_leaves_no_run_folder_behind(tmp_path, count_compiles):
    """So that the corrected call can be made again."""
    out = tmp_path / "r"
    refused(
        count_compiles, lambda: fit(out=out, hooks=[train.ReduceOnPlateau("loss")]), ValueError, "has 0 hyperparameters"
    )
    refused(
        count_compiles,
        lambda: fit(out=out, hooks=[train.EarlyStopping("nothing")]),
        ValueError,
        "which nothing reports",
    )
    refused(count_compiles, lambda: fit(out=out, steps=0), ValueError, "steps must be at least 1")
    assert not out.exists()
    assert int(fit(out=out).state.step) == 4


# A trained state and other data


@pytest.fixture(scope="module")
def run():
    return fit()


def other_task():
    return train.supervised(models.MLP((7, 1)), losses.mse)


USES = {
    "raw parameters": (
        lambda run: train.evaluate(TASK, run.state.params, SOURCE),
        TypeError,
        r"train\.evaluate: the second argument must be a State, got dict\. Give run\.state",
    ),
    "the run": (
        lambda run: train.evaluate(TASK, run, SOURCE),
        TypeError,
        r"train\.evaluate: the second argument must be a State, got Run\. Give run\.state",
    ),
    "a module": (
        lambda run: train.evaluate(MLP, run.state, SOURCE),
        TypeError,
        r"train\.evaluate: the first argument must be a Task, got MLP",
    ),
    "arrays": (
        lambda run: train.evaluate(TASK, run.state, X),
        TypeError,
        r"train\.evaluate: the data must be a data source, got float32\[16, 3\]",
    ),
    "batch 0": (
        lambda run: train.evaluate(TASK, run.state, SOURCE, batch_size=0),
        ValueError,
        r"train\.evaluate: batch_size must be at least 1, got 0",
    ),
    "another width": (
        lambda run: train.evaluate(TASK, run.state, data.Arrays(X[:, :2], Y)),
        ValueError,
        r"train\.evaluate: the state is not that of this task on a batch of x float32\[16, 2\], y .*"
        r"params/head/kernel: float32\[3, 1\] against float32\[2, 1\]\. Give the task that was trained",
    ),
    "no targets": (
        lambda run: train.evaluate(TASK, run.state, data.Arrays(X)),
        ValueError,
        r"Task: the batch has no 'y'",
    ),
    "another task": (
        lambda run: train.evaluate(other_task(), run.state, SOURCE),
        ValueError,
        r"the state is not that of this task .*params/hidden_0/bias: float32\[7\] is only in the second",
    ),
    "predict another width": (
        lambda run: train.predict(TASK, run.state, X[:, :2]),
        ValueError,
        r"train\.predict: the state is not that of this task .*: params/head/kernel: float32\[3, 1\] against ",
    ),
    "predict objects": (
        lambda run: train.predict(TASK, run.state, [None]),
        TypeError,
        r"data\.Arrays: 'x' object\[1\] holds Python objects",
    ),
    "predict nothing": (
        lambda run: train.predict(TASK, run.state, X[:0]),
        ValueError,
        r"data\.Arrays: 'x' float32\[0, 3\] has no examples",
    ),
    "predict by parameters": (
        lambda run: train.predict(TASK, run.state.params, X),
        TypeError,
        r"train\.predict: the second argument must be a State, got dict",
    ),
    "predict 2.5 at a time": (
        lambda run: train.predict(TASK, run.state, X, batch_size=2.5),
        TypeError,
        r"train\.predict: batch_size must be an integer, got 2\.5",
    ),
    "outputs without an example axis": (
        lambda run: train.predict(averaging(), run.state, X),
        ValueError,
        r"train\.predict: output '\.' float32\[1\] has no leading axis of the 16 examples",
    ),
    "a strategy's function": (
        lambda run: train.evaluate(TASK, run.state, SOURCE, strategy=parallel.single),
        TypeError,
        r"train\.evaluate: strategy must be .*Call it: parallel\.single\(\)",
    ),
    "a value that was not reported": (
        lambda run: run.column("accuracy"),
        KeyError,
        r"Run\.column: 'accuracy' was never reported\. Reported: ",
    ),
}


def averaging():
    init = lambda key, x: {"head": {"kernel": jnp.zeros((3, 1)), "bias": jnp.zeros(1)}}  # noqa: E731
    return train.from_functions(init, lambda p, x: (x @ p["head"]["kernel"]).mean(0), losses.mse)


@pytest.mark.parametrize("case", USES, ids=lambda name: name.replace(" ", "-"))
def test_a_trained_state_is_not_used_wrongly(run, case, count_compiles):
    call, error, message = USES[case]
    jax.clear_caches()
    with count_compiles() as seen, pytest.raises(error, match=message) as caught:
        call(run)
    assert seen.compiles == []
    assert len(str(caught.value)) < 600


def test_a_sequence_longer_than_the_learned_positions(count_compiles):
    config = models.GPTConfig(vocab=8, length=4, layers=1, heads=1, width=4, positions="learned")
    task = train.supervised(models.GPT(config), losses.cross_entropy)
    tokens = np.zeros((4, 6), np.int32)
    refused(
        count_compiles,
        lambda: fit(task=task, source=data.Arrays(tokens, tokens)),
        ValueError,
        r"models\.GPT: 6 tokens for 4 learned positions\. .*GPTConfig\(length=6\)",
    )


def test_the_cases_are_many_and_say_different_things():
    messages = [message for _, _, message in itertools.chain(CASES.values(), USES.values())]
    assert len(set(messages)) >= 100
