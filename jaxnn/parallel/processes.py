"""Many processes as one job: joining it, agreeing on what clocks and signals say, and leaving it.

Every process runs the same program. What they compute is the same by construction; what only one of them can know (the
time, a signal, a name on its disk) has to be told to the others at a point that all reach: `agree` and `gather`.
"""

import contextlib
import faulthandler
import glob
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

import jax
import numpy as np

from jaxnn.parallel import beats, rendezvous
from jaxnn.parallel.devices import RENDEZVOUS_THREADS
from jaxnn.parallel.placing import process_count, process_index

COORDINATOR, PROCESSES, PROCESS = "JAXNN_COORDINATOR", "JAXNN_PROCESSES", "JAXNN_PROCESS"
START_S = "JAXNN_START_SECONDS"
WHERE = "parallel.initialize"


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout_s: float | None = None,
) -> bool:
    """Joins the job that this process is part of; call it before anything asks JAX for a device.

    The job is given by the arguments; else by `JAXNN_COORDINATOR`, `JAXNN_PROCESSES` and `JAXNN_PROCESS`, as
    `jaxnn launch` sets them; else found by JAX, which knows SLURM, Open MPI, Kubernetes and TPU pods. Without any of
    them nothing happens. A second call does nothing.

    Args:
        coordinator: "host:port" where process 0 listens.
        processes: How many there are.
        process: The number of this one, from 0.
        timeout_s: Seconds to wait for the others; None for `JAXNN_START_SECONDS`, or 300.

    Returns:
        Whether this process is part of a job.

    Raises:
        ValueError: If what is given is incomplete or makes no sense, the coordinator's port is in use or cannot be
            reached, or the other processes do not come.
    """
    if jax.distributed.is_initialized():
        return True
    seconds = float(os.environ.get(START_S, 300)) if timeout_s is None else timeout_s
    given = _given(coordinator, processes, process)
    if given is None and not _in_cluster():
        return False
    os.environ.setdefault("NPROC", str(RENDEZVOUS_THREADS))  # as for forced devices: collectives need threads
    with contextlib.suppress(AttributeError):
        # It would swallow SIGTERM; the loop of `fit` listens itself.
        jax.config.update("jax_enable_preemption_service", False)
    options: dict[str, Any] = {"initialization_timeout": max(1, int(seconds))}
    if given is not None:
        address, count, index = given
        options |= {"coordinator_address": address, "num_processes": count, "process_id": index}
        if count > 1:
            rendezvous.gather(address, count, index, seconds)
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise ValueError(_failed(given, seconds, error)) from error
    if process_count() > 1:
        sys.excepthook = _fail
        if not faulthandler.is_enabled():
            faulthandler.enable()  # JAX ends a process whose job is lost by SIGABRT
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    beats.start()
    return True


def _given(coordinator: str | None, processes: int | None, process: int | None) -> tuple[str, int, int] | None:
    """The job as arguments or the environment give it."""
    values: dict[str, Any] = {
        COORDINATOR: coordinator or os.environ.get(COORDINATOR),
        PROCESSES: processes if processes is not None else os.environ.get(PROCESSES),
        PROCESS: process if process is not None else os.environ.get(PROCESS),
    }
    missing = [name for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return None
    shown = ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)
    if missing:
        raise ValueError(f"{WHERE}: {shown} without {' and '.join(missing)}. Give all three, or none to let JAX look.")
    host, _, port = str(values[COORDINATOR]).rpartition(":")
    try:
        count, index = int(values[PROCESSES]), int(values[PROCESS])
        sensible = bool(host) and 0 < int(port) < 65536 and 0 <= index < count
    except ValueError:
        sensible, count, index = False, 0, 0
    if not sensible:
        raise ValueError(
            f"{WHERE}: {shown}. Give a coordinator HOST:PORT, a number of processes, and this one's number below it: "
            f"{COORDINATOR}=10.0.0.1:1234 {PROCESSES}=4 {PROCESS}=0, say."
        )
    return f"{host}:{port}", count, index


def _in_cluster() -> bool:
    """Whether something that JAX can detect seems to have started this process as one of several."""
    env = os.environ

    def several(name: str) -> bool:
        return env.get(name, "1").isdigit() and int(env.get(name, "1")) > 1

    slurm = "SLURM_STEP_NODELIST" in env and several("SLURM_NTASKS")
    mpi = "OMPI_MCA_orte_hnp_uri" in env and several("OMPI_COMM_WORLD_SIZE")
    kubernetes = "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    tpu = bool(chips) and importlib.util.find_spec("libtpu") is not None and "cpu" not in env.get("JAX_PLATFORMS", "")
    return slurm or mpi or kubernetes or tpu or "JAX_COORDINATOR_ADDRESS" in env


def _failed(given: tuple[str, int, int] | None, seconds: float, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, RuntimeError) and "before" in reason:
        return f"{WHERE}: JAX has started already ({reason}). Call it before the first array or jax.devices()."
    if given is None:
        return (
            f"{WHERE}: JAX found no job to join, or could not join it: {reason} Tried: SLURM, Open MPI, Kubernetes, "
            f"TPU. Give {COORDINATOR}, {PROCESSES} and {PROCESS}."
        )
    address, count, index = given
    return (
        f"{WHERE}: process {index} of {count} could not join the job at {address} within {seconds:.0f} s: {reason} "
        f"Start exactly {count} processes, numbered from 0, with the same coordinator."
    )


def leave(status: int) -> NoReturn:
    """Ends this process of a job at once.

    An ordinary exit waits for the other processes, which may be waiting for this one. Process 0 holds the job together:
    it gives the others a second to say what they have to say.
    """
    if process_count() > 1 and process_index() == 0:
        time.sleep(1.0)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _fail(kind: type[BaseException], error: BaseException, where: Any) -> NoReturn:
    """Prints an error that nobody caught, and leaves."""
    traceback.print_exception(kind, error, where)
    leave(1)


# ---- agreement


def gather(value: Any) -> list[Any]:
    """The JSON value that each process gives, in order of their numbers; collective."""
    if process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.asarray(len(text), np.int32)))
    size = 1 << max(6, int(lengths.max() - 1).bit_length())  # few sizes: each is a program of its own
    padded = np.zeros(size, np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def agree(value: Any) -> Any:
    """Process 0's JSON `value`, on every process; collective. For what depends on a clock, a disk or chance."""
    return gather(value)[0] if process_count() > 1 else value


def numbers(*values: float) -> np.ndarray:
    """[processes, values], float64: the numbers that each process gives; collective, a millisecond."""
    row = np.asarray(values, np.float64)
    if process_count() == 1:
        return row[None]
    from jax.experimental import multihost_utils

    # As words: JAX would make float32 of them.
    return np.asarray(multihost_utils.process_allgather(row.view(np.uint32))).view(np.float64)


def meet(name: str) -> None:
    """Returns when every process has come here; `name` says where, and has to be the same."""
    if process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
