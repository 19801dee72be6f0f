import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, optim, train
from jaxnn.train import resumed

X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
SOURCE = data.Arrays(X, X[:, :1])


def fit(tx, out, steps, resume=False, hooks=(), **log):
    task = train.supervised(models.MLP((4, 1)), losses.mse)
    return train.fit(
        task, tx, SOURCE, steps=steps, batch_size=8, out=out, resume=resume, hooks=hooks, log=train.Log(every=4, **log)
    )


def test_a_resumed_run_says_from_where(tmp_path, capsys):
    fit(optim.adam(1e-2), tmp_path / "run", 8)
    assert "Going on" not in capsys.readouterr().out
    fit(optim.adam(1e-2), tmp_path / "run", 12, resume=True)
    out = capsys.readouterr().out
    assert f"Going on with {tmp_path / 'run'} after step 8.\n" in out
    assert "The optimizer goes on with" not in out
    fit(optim.adam(1e-2), tmp_path / "run", 12, resume=True)
    assert f"The run in {tmp_path / 'run'} is finished: 12 steps." in capsys.readouterr().out


def test_a_run_that_had_saved_nothing_says_so(tmp_path, capsys):
    class Crash(train.Hook):
        def every(self, plan):
            return 4

        def act(self, at):
            raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="power"):
        fit(optim.adam(1e-2), tmp_path / "run", 8, hooks=[Crash()])
    fit(optim.adam(1e-2), tmp_path / "run", 8, resume=True)
    assert f"No checkpoint had been written in {tmp_path / 'run'}: the run begins again." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "name"),
    [(optim.adam, "lr"), (lambda lr: optax.inject_hyperparams(optax.adam)(learning_rate=lr), "learning_rate")],
    ids=["ours", "optax"],
)
def test_another_rate_in_the_program_is_told_and_not_in_effect(make, name, tmp_path, capsys):
    fit(make(1e-2), tmp_path / "run", 8)
    capsys.readouterr()
    run = fit(make(5e-3), tmp_path / "run", 12, resume=True)
    line = f"The optimizer goes on with what its checkpoint holds: {name} 0.01 (the program says 0.005)."
    assert line in capsys.readouterr().out
    assert run.column(name)[1][-1] == pytest.approx(1e-2)
    assert any(row["event"] == "kept" and line in row["message"] for row in run.folder.journal.read())


def test_a_schedule_is_not_a_constant(tmp_path, capsys):
    fit(optim.adam(optim.cosine(1e-2, 12)), tmp_path / "run", 8)
    fit(optim.adam(optim.cosine(1e-2, 12)), tmp_path / "run", 12, resume=True)
    assert "The optimizer goes on with" not in capsys.readouterr().out
    injected = optax.inject_hyperparams(optax.adam)(learning_rate=optax.cosine_decay_schedule(1e-2, 12))
    state = injected.init({"w": jnp.ones(2)})
    assert "learning_rate" not in optim.constants(state)
    assert "b1" in optim.constants(state)


def test_an_optimizer_without_hyperparameters_has_nothing_to_tell():
    task = train.supervised(models.MLP((4, 1)), losses.mse)
    like = {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}
    assert resumed.kept(task, optax.adam(1e-2), {"x": X}, {}, like) is None


def test_roles_are_declared(tmp_path, capsys):
    fit(optim.muon(1e-2), tmp_path / "run", 8)
    capsys.readouterr()
    fit(optim.muon(5e-3), tmp_path / "run", 12, resume=True)
    assert "lr 0.01 (the program says 0.005)" in capsys.readouterr().out
