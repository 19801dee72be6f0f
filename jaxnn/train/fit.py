"""`fit`: a task, an optimizer and data, in; a run, out. What is refused is refused before anything is compiled."""

import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optax

from jaxnn import bench, optim, parallel, tree
from jaxnn.core import Step, Task, roles
from jaxnn.runs import write_summary
from jaxnn.train import population as populations, resumed
from jaxnn.train.hooks import Hook
from jaxnn.train.prepare import Prepared, prepare
from jaxnn.train.profile import Profile
from jaxnn.train.progress import Progress
from jaxnn.train.run import Checkpointing, Dispatch, Interrupted, Log, Run
from jaxnn.train.session import Session
from jaxnn.train.signals import Signals
from jaxnn.typing import Source, Strategy


def fit(
    task: Task,
    tx: optax.GradientTransformation,
    source: Source,
    *,
    batch_size: int,
    steps: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    strategy: Strategy | None = None,
    step: Step | None = None,
    validation: Source | None = None,
    validate_every: int | None = None,
    hooks: Sequence[Hook] = (),
    out: str | os.PathLike[str] | None = None,
    resume: bool | Literal["auto"] = False,
    log: Log | None = None,
    save: Checkpointing | None = None,
    dispatch: Dispatch | None = None,
    debug: bool = False,
    population: optim.Population | None = None,
    config: Mapping[str, Any] | None = None,
    init_from: Any = None,
) -> Run:
    """Trains, and gives the run back.

    A run is a function of (code, data, seed): the examples of each step are arithmetic, random layers draw by example
    and step, and how steps are cut into dispatches changes nothing. With `out`, a killed run resumes to the byte.

    Args:
        task: What is learned.
        tx: An optax gradient transformation.
        source: Training data; each epoch is a new permutation, its last batch padded and masked.
        batch_size: Global examples a step, over all devices.
        steps: How many batches; or give `epochs`.
        epochs: How many passes over the data.
        seed: The only source of randomness.
        strategy: How the step is spread over devices; by default one device.
        step: Gradient accumulation, precision, rematerialisation, and what is done where something is not finite.
            Validation and `run.task` have the precision, too.
        validation: Held-out data; its values are reported as "val_...".
        validate_every: Data steps between validations; by default an epoch, or a tenth of `steps`.
        hooks: What else happens; see `train.Hook`.
        out: The run's folder: metrics, journal, checkpoints, report.
        resume: Go on with the run in `out` from its newest good checkpoint, or from the start where it was killed
            before it had written one. "auto" does so where `out` holds a run, and begins one where it does not: for
            jobs that are started again by a machine.
        log: What is reported and shown.
        save: When checkpoints are written (with `out`).
        dispatch: How steps reach the device.
        debug: Name the first layer (Linen), parameter or gradient that is not finite, and the step. Costs a pass over
            all of them.
        population: Train every member of it in one program, vmapped and spread over the strategy's devices:
            `optim.grid(lr=[1e-3, 1e-2])`. Rows hold `loss@0`, `loss@1`, ... and as `loss` the best; `run.member(i)` is
            one member's run. A member that diverges does not stop the others.
        config: The experiment's config as JSON, recorded; a resume with another one is refused.
        init_from: Where the first parameters come from: a tree of them, a `Run` or `State`, or the folder of a run or
            of one of its checkpoints. Top-level entries that it lacks are begun anew, save those that no step changes
            (`with_lora`'s base): they are drawn where it is {}, and refused where it has others or is None.
            BatchNorm's statistics come from a run, a state or a folder too, and from variables, {"params": ...,
            "batch_stats": ...}. A resumed run goes on from its checkpoint, and needs it only for parameters that
            checkpoints leave out (`with_lora`).

    Returns:
        The run: its last state, its history, and why it stopped early if it did.

    Raises:
        TypeError: If something is not what it should be: task, optimizer, data, strategy, a number.
        ValueError: If shapes do not fit, sizes make no sense, or the run folder is not usable: foreign, of another
            config, of a run that has gone further already, or being written by another process.
        Interrupted: After Ctrl-C or SIGTERM, once the run is saved; holds the run.
    """
    job = prepare(
        task,
        tx,
        source,
        batch_size=batch_size,
        steps=steps,
        epochs=epochs,
        seed=seed,
        strategy=strategy,
        step=step,
        validation=validation,
        validate_every=validate_every,
        hooks=hooks,
        out=out,
        resume=resume,
        log=log,
        save=save,
        dispatch=dispatch,
        debug=debug,
        population=population,
        config=config,
        init_from=init_from,
    )
    try:
        with tree.declaring(lambda: roles(job.task, job.batch)):  # a strategy may lay out parameters by them
            return _run(job, job.resume)
    finally:
        if job.folder is not None:
            job.folder.release()


def _run(job: Prepared, resume: bool) -> Run:
    """The run, from its first state or its newest good checkpoint to its report."""
    folder, log, plan = job.folder, job.log, job.plan
    progress = Progress() if log.progress and parallel.process_index() == 0 else None
    session = Session(
        plan,
        job.strategy,
        job.windows(),
        job.hooks,
        folder,
        job.save,
        progress,
        log.tensorboard,
        job.shapes,
        job.flops,
        list(job.sums),
    )
    stopped: str | None = None
    try:
        saver = session.saver
        if saver is not None:
            saver.leave_out(job.task.frozen, lambda: job.first_state().params)
        if resume and saver is not None and not saver.begins_again():
            state, at = session.restore(None, hooks=True)
        else:
            state, at = job.first_state(), 0
        session.engine = job.engine(state, at, session.deliver)
        del state  # the engine's step donates it
        if folder is not None and resume:
            folder.update_config(job.config)
            session.journal("resume", changed=job.changed)
        else:
            session.journal("start", **job.told)
        if log.profile is not None and folder is not None:
            number = parallel.process_index()  # each process traces its own devices
            where = folder.path / (f"profile-{number}" if number else "profile")
            session.profile = Profile(log.profile, where, session.engine.program)
        if progress is not None:
            progress.begin(plan)
        if folder is not None and resume:
            session.show(resumed.began(at, plan.steps, folder.path))
            if (line := resumed.kept(job.task, job.tx, job.batch, session.stored, job.shapes.params)) is not None:
                session.show(line)
                session.journal("kept", message=line)
        if job.uncounted is not None:
            session.journal("uncounted", reason=job.uncounted)
            session.show(f"The FLOPs of a step could not be counted, and are not reported: {job.uncounted}")
        with Signals() as signals:
            while True:
                stopped = session.run(signals)
                if signals.received is not None:
                    break
                stopped = session.end(stopped)
                session.hear(signals)
                if stopped is not None or session.engine.data_step >= plan.steps:
                    break
    finally:
        session.close()
        parallel.rest()
    run = Run(
        job.task,
        session.engine.state,
        session.history,
        stopped,
        folder,
        job.population,
        session.timing,
        job.conditions(session.engine),
    )
    at = session.engine.data_step
    if folder is not None:
        if log.peaks and parallel.process_count() == 1 and signals.received is None:
            measured = bench.peaks(seconds=1.0)
            values = {peak.name: peak.value for peak in measured.by_name.values()}
            folder.journal.append("peaks", at, device=measured.device, **values)
        sections = [] if job.population is None else [populations.section(job.population, run.history)]
        try:
            write_summary(folder, run.state.params, sections=sections)
        except OSError as error:  # the run is saved; a full disk must not cost its caller the result
            warnings.warn(
                f"train.fit: the report of the run could not be written ({error.strerror or error}); all else is "
                f"in {folder.path}. Make room, then write it again: runs.write_summary(run.folder, run.state.params).",
                RuntimeWarning,
                stacklevel=3,
            )
    if signals.received is not None:
        how = (
            f" Saved at step {at} in {folder.path}; go on with resume=True (--resume)."
            if folder
            else " Nothing is saved: no out= was given. The run is in the error: error.run, or sys.last_value.run."
        )
        by = signal.Signals(signals.received).name
        raise Interrupted(f"train.fit: interrupted by {by} at step {at} of {plan.steps}.{how}", run, signals.received)
    return run
