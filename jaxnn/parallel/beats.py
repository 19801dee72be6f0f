"""Signs of life for whoever watches a job: how far its main loop is, and that it moves.

A supervisor gives the number of a pipe in `JAXNN_BEAT`. A thread writes the newest step there, but only while the loop
goes on: a loop that waits for ever in a collective falls silent as a stopped process does.
"""

import os
import select
import signal
import threading

PIPE = "JAXNN_BEAT"
EVERY_S = 0.2
_moves = 0
_step = -1
_resting = False
_started = False


def beat(step: int | None = None) -> None:
    """The main loop moves; costs nothing that could be measured.

    Args:
        step: The data step that it has come to, where it knows.
    """
    global _moves, _step, _resting
    _moves += 1
    _resting = False
    if step is not None:
        _step = step


def rest() -> None:
    """The loop has ended: what follows (a report, scores) is given the time of a start, not of a step."""
    global _moves, _resting
    _moves += 1
    _resting = True


def start() -> None:
    """Begins to tell the supervisor, if there is one; once a process."""
    global _started
    if PIPE not in os.environ or _started:
        return
    _started = True
    threading.Thread(target=_tell, args=(int(os.environ[PIPE]),), name="jaxnn-beats", daemon=True).start()


def _tell(pipe: int) -> None:
    told = 0
    closed = select.poll()
    closed.register(pipe, 0)  # errors alone: the other end is gone
    while not closed.poll(int(1000 * EVERY_S)):
        moves = _moves
        if moves != told:
            told = moves
            try:
                os.write(pipe, b"rest\n" if _resting else b"%d\n" % _step)
            except OSError:
                break
    os.kill(os.getpid(), signal.SIGTERM)  # the supervisor is gone: an orderly end, not a job that nobody watches
