"""Who is there, before JAX's services start: these end a process without a word that helps where one does not come.

Process 0 listens at the coordinator's address; every other one says its number and how many it expects, and is told to
go on once all are there, or why not. Then the port is JAX's.
"""

import contextlib
import socket
import time
from collections.abc import Iterable

WHERE = "parallel.initialize"
GO = "go"
SAY_S = 5.0  # for one line over a connection


def gather(address: str, count: int, index: int, seconds: float) -> None:
    """Returns when all `count` processes of the job are there; `index` is this one's number.

    Raises:
        ValueError: If the port is in use, the coordinator cannot be reached, a process does not come within `seconds`,
            two have the same number, or they expect different numbers of processes.
    """
    host, _, port = address.rpartition(":")
    if index == 0:
        _receive(address, host.strip("[]"), int(port), count, seconds)
    else:
        _report(address, host.strip("[]"), int(port), count, index, seconds)


def _receive(address: str, host: str, port: int, count: int, seconds: float) -> None:
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    came: dict[int, socket.socket] = {}
    with server:
        try:
            server.bind(("", port))
            server.listen(count)
        except OSError as error:
            raise ValueError(
                f"{WHERE}: port {port} of the coordinator {address} cannot be used ({error.strerror or error}). "
                "Tried: listening there as process 0. Give a free port."
            ) from error
        deadline = time.monotonic() + seconds
        try:
            while len(came) < count - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    missing = ", ".join(str(i) for i in range(1, count) if i not in came)
                    raise ValueError(
                        f"{WHERE}: process {missing} of {count} did not come within {seconds:g} s. Tried: waiting at "
                        f"{address}. Start exactly {count} processes, numbered from 0, with this coordinator."
                    ) from None
                peer.settimeout(SAY_S)
                number, expected = _numbers(peer)
                if number is None:  # no process of ours: somebody probes the port
                    peer.close()
                    continue
                if expected != count or number in came or not 0 < number < count:
                    came.setdefault(-1, peer)
                    what = "a second" if number in came or number == 0 else "a"
                    raise ValueError(
                        f"{WHERE}: {what} process {number} of {expected} came to a job of {count} at {address}. Tried: "
                        "one process for each number. Start all of them with the same number of processes."
                    )
                came[number] = peer
        except ValueError as error:
            _answer(came.values(), str(error))
            raise
        _answer(came.values(), GO)


def _numbers(peer: socket.socket) -> tuple[int | None, int]:
    """What a process says of itself: its number, and how many it expects; None for who is none."""
    words = _line(peer).split()
    if len(words) == 3 and words[0] == "jaxnn" and words[1].isdigit() and words[2].isdigit():
        return int(words[1]), int(words[2])
    return None, 0


def _line(peer: socket.socket) -> str:
    text = b""
    with contextlib.suppress(OSError):
        while not text.endswith(b"\n") and len(text) < 4096 and (part := peer.recv(1024)):
            text += part
    return text.decode(errors="replace").strip()


def _answer(peers: Iterable[socket.socket], text: str) -> None:
    for peer in peers:
        with contextlib.suppress(OSError), peer:
            peer.sendall(text.encode() + b"\n")


def _report(address: str, host: str, port: int, count: int, index: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            peer = socket.create_connection((host, port), timeout=min(SAY_S, max(0.1, seconds)))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{WHERE}: process {index} of {count} does not reach the coordinator at {address} "
                    f"({error.strerror or error}). Tried: connecting for {seconds:.0f} s. Start process 0 there, or "
                    "give the address where it listens."
                ) from error
            time.sleep(0.1)
    with peer:
        peer.settimeout(max(SAY_S, deadline + SAY_S - time.monotonic()))  # process 0 gives up first, and says why
        with contextlib.suppress(OSError):
            peer.sendall(f"jaxnn {index} {count}\n".encode())
        answer = _line(peer)
    if answer == GO:
        return
    if answer.startswith(WHERE):
        raise ValueError(answer)
    raise ValueError(
        f"{WHERE}: what listens at {address} is no process 0 of this job (it says {answer[:40]!r}). Tried: joining it "
        f"as process {index} of {count}. Give the address of process 0, and a port of this job's own."
    )
