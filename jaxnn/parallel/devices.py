"""Devices: choosing them, and forcing several on a CPU to try a parallel program."""

import os
from collections.abc import Sequence

import jax

# On jax 0.10 asynchronously dispatched collectives of several host devices deadlock on a thread pool of few cores.
RENDEZVOUS_THREADS = 32


def force_host_devices(count: int) -> None:
    """Makes the CPU backend show at least `count` devices. Call it before anything asks JAX for a device.

    Sets the thread pool (`NPROC`) large enough that collectives of forced devices cannot deadlock. Does nothing for
    accelerators, whose devices are what they are.

    Raises:
        ValueError: If `count` < 1.
        RuntimeError: If JAX has already started its backend with fewer devices.
    """
    if count < 1:
        raise ValueError(f"parallel.force_host_devices: count must be at least 1, got {count}.")
    if count > 1:
        os.environ.setdefault("NPROC", str(max(RENDEZVOUS_THREADS, 2 * count)))
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if jax.default_backend() != "cpu" or len(jax.devices("cpu")) >= count:
            return  # an accelerator's devices are what they are, and there may be no CPU backend beside it
        raise RuntimeError(
            f"parallel.force_host_devices: JAX already started with {len(jax.devices('cpu'))} CPU devices, "
            f"{count} were asked "
            "for. Call it before the first array or jax.devices()."
        ) from error


def compilation_cache(folder: str | os.PathLike[str] = "~/.cache/jaxnn/xla") -> None:
    """Keeps compiled programs on disk, so that the second start of a program compiles nothing.

    A cache that the user has configured (`JAX_COMPILATION_CACHE_DIR`) is left alone.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        # Reading a program takes some 20 ms: those of evaluation and prediction are worth it, too.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def select(devices: int | Sequence[jax.Device] | None, where: str) -> tuple[jax.Device, ...]:
    """The devices asked for: a number of the first ones, a list, or all.

    Raises:
        ValueError: If there are fewer than asked for, or none is.
    """
    if devices is None:
        return tuple(jax.devices())
    if isinstance(devices, int):
        available = jax.devices()
        if not 1 <= devices <= len(available):
            raise ValueError(
                f"{where}: {devices} devices were asked for, {len(available)} {available[0].platform} devices are "
                "there. "
                f"On CPU, call parallel.force_host_devices({max(devices, 1)}) first."
            )
        return tuple(available[:devices])
    if not devices:
        raise ValueError(f"{where}: the list of devices is empty. Leave it out for all of them.")
    return tuple(devices)
