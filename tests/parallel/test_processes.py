import os
import select
import socket
import threading
import time

import numpy as np
import pytest

from jaxnn import parallel
from jaxnn.parallel import beats, processes, rendezvous


def test_without_a_job_nothing_happens():
    assert not parallel.initialize()
    assert (parallel.process_count(), parallel.process_index()) == (1, 0)
    value = {"a": [1, 2]}
    assert parallel.agree(value) is value
    assert parallel.gather(3) == [3]
    np.testing.assert_array_equal(parallel.numbers(1.5, 2), [[1.5, 2.0]])
    parallel.meet("here")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "127.0.0.1:1234"}, "without JAXNN_PROCESSES and JAXNN_PROCESS"),
        ({"coordinator": "nowhere", "processes": 2, "process": 0}, "Give a coordinator HOST:PORT"),
        ({"coordinator": "127.0.0.1:1234", "processes": 2, "process": 2}, "Give a coordinator HOST:PORT"),
        ({"coordinator": "127.0.0.1:99999", "processes": 2, "process": 0}, "Give a coordinator HOST:PORT"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(ValueError, match=r"^parallel\.initialize: ") as refused:
        parallel.initialize(**given)
    assert message in str(refused.value)


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv(processes.COORDINATOR, "127.0.0.1:1234")
    monkeypatch.setenv(processes.PROCESSES, "two")
    monkeypatch.setenv(processes.PROCESS, "0")
    with pytest.raises(ValueError, match="JAXNN_PROCESSES=two"):
        parallel.initialize()


def test_a_port_in_use_is_told_before_jax_ends_the_process():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of the coordinator .* cannot be used .* Give a free port"):
            parallel.initialize(f"127.0.0.1:{port}", 2, 0)


def test_a_coordinator_that_is_not_there_is_told():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ValueError, match=f"process 1 of 2 does not reach the coordinator at 127.0.0.1:{port}"):
        parallel.initialize(f"127.0.0.1:{port}", 2, 1, timeout_s=0.2)


def answers(address, *jobs, seconds=1.0):
    """What the processes (index, count) of a job are told: None, or what is wrong."""
    found = {}

    def join(index, count):
        try:
            found[index] = rendezvous.gather(address, count, index, seconds)
        except ValueError as error:
            found[index] = str(error)

    threads = [threading.Thread(target=join, args=numbers) for numbers in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_processes_go_on_when_all_are_there():
    address = free_address()
    for _ in range(2):  # the port is free again afterwards
        assert answers(address, (2, 3), (0, 3), (1, 3), seconds=20) == {0: None, 1: None, 2: None}


def test_all_are_told_who_does_not_come():
    found = answers(free_address(), (0, 4), (2, 4), seconds=0.5)
    assert found[0] == found[2]
    assert "process 1, 3 of 4 did not come within 0.5 s" in found[0]


def test_all_are_told_of_another_number_of_processes():
    found = answers(free_address(), (0, 3), (1, 2), seconds=20)
    assert found[0] == found[1]
    assert "a process 1 of 2 came to a job of 3" in found[0]


def test_a_probe_of_the_port_does_no_harm_and_a_foreign_server_is_told():
    address = free_address()
    host, port = address.split(":")

    def probe():
        time.sleep(0.3)
        with socket.create_connection((host, int(port))) as peer:
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n")

    prober = threading.Thread(target=probe)
    prober.start()
    late = threading.Timer(0.6, lambda: found.update(answers(address, (1, 2), seconds=20)))
    found = {}
    late.start()
    assert answers(address, (0, 2), seconds=20) == {0: None}
    late.join(20)
    prober.join(20)
    assert found == {1: None}
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"

        def answer():
            with server.accept()[0] as peer:
                peer.sendall(b"SSH-2.0\r\n")
                peer.recv(100)

        foreign = threading.Thread(target=answer)
        foreign.start()
        assert "is no process 0 of this job (it says 'SSH-2.0')" in answers(taken, (1, 2), seconds=20)[1]
        foreign.join(20)


def test_beats_are_told_while_the_loop_moves_and_not_otherwise(monkeypatch):
    reads, writes = os.pipe()
    ended = threading.Event()
    monkeypatch.setattr(beats, "EVERY_S", 0.01)
    monkeypatch.setattr(beats.os, "kill", lambda *_: ended.set())
    parallel.beat(7)
    threading.Thread(target=beats._tell, args=(writes,), daemon=True).start()
    assert os.read(reads, 100) == b"7\n"
    time.sleep(0.1)
    assert not select.select([reads], [], [], 0)[0]
    parallel.beat()
    assert os.read(reads, 100) == b"7\n"
    parallel.rest()
    assert os.read(reads, 100) == b"rest\n"
    os.close(reads)  # the supervisor is gone
    assert ended.wait(10)
    os.close(writes)
