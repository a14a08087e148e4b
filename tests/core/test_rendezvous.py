"""Processes that meet: together they go on, or each hears what is wrong, in time."""

import socket
import threading
import time
from concurrent import futures

import pytest

from pacx_jax.distributed import rendezvous
from pacx_jax.errors import PacxError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def meet(*who, seconds=20.0, port=None):
    """What (id, count) of `who`, each in a thread, heard: "" or an error."""
    port = port or free_port()
    heard = [None] * len(who)

    def come(place, number, count):
        try:
            rendezvous.meet(f"localhost:{port}", count, number, seconds)
            heard[place] = ""
        except PacxError as e:
            heard[place] = str(e)

    threads = [
        threading.Thread(target=come, args=(i, *w), daemon=True)
        for i, w in enumerate(who)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(seconds + 10)
    return heard


def test_all_go_on_once_all_are_there():
    port = free_port()
    assert meet((2, 4), (0, 4), (3, 4), (1, 4), port=port) == [""] * 4
    assert meet((1, 2), (0, 2), port=port) == [""] * 2


def test_connections_stay_and_the_port_can_be_listened_at():
    address = f"localhost:{free_port()}"
    with futures.ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(rendezvous.meet, address, 3, i, 10) for i in range(3)]
    first, second, third = (each.result() for each in waits)
    assert set(first) == {1, 2} and set(second) == set(third) == {0}
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        for number, other in ((1, second), (2, third)):
            first[number].sendall(bytes([number]))
            assert other[0].recv(2) == bytes([number])
    for connection in (*first.values(), *second.values(), *third.values()):
        connection.close()


def test_what_follows_the_answer_stays_unread():
    near, far = socket.socketpair()
    with near, far:
        near.sendall(b'{"wrong": ""}\n\x00\x00\x00\x00\x00\x01')
        assert rendezvous._read(far, 1) == {"wrong": ""}
        assert far.recv(9) == b"\x00\x00\x00\x00\x00\x01"


def test_one_process_meets_nobody():
    assert meet((0, 1)) == [""]


def test_all_hear_which_process_did_not_come():
    since = time.monotonic()
    heard = meet((0, 4), (2, 4), seconds=0.5)
    assert time.monotonic() - since < 5
    assert all("process 1, 3 of 4 did not come to localhost" in text for text in heard)


def test_nobody_waits_longer_than_the_first_that_gives_up():
    port = free_port()
    hasty = threading.Thread(
        target=lambda: pytest.raises(
            PacxError, rendezvous.meet, f"localhost:{port}", 3, 1, 0.5
        )
    )
    hasty.start()
    since = time.monotonic()
    assert "process 2 of 3 did not come" in meet((0, 3), seconds=30.0, port=port)[0]
    assert time.monotonic() - since < 5
    hasty.join()


def test_all_hear_that_two_have_the_same_number():
    heard = meet((0, 3), (1, 3), (1, 3))
    assert heard == ["two processes have the id 1: number them 0 to 2"] * 3


def test_a_second_process_0_is_told_so():
    first, second, _ = meet((0, 2), (0, 2), (1, 2))
    assert first == ""
    assert "two processes have the id 0, or another program has the port" in second


@pytest.mark.parametrize("other", [(1, 3), (2, 3)])
def test_all_hear_that_they_were_told_different_counts(other):
    heard = meet((0, 2), other)
    text = f"process {other[0]} was told of 3 processes, process 0 of 2"
    assert all(text in one for one in heard) and len(heard) == 2


@pytest.mark.parametrize("host", ["localhost", "no-such-host.invalid"])
def test_a_coordinator_that_cannot_be_reached_is_named(host):
    since = time.monotonic()
    with pytest.raises(PacxError, match=f"could not reach process 0 at {host}:"):
        rendezvous.meet(f"{host}:{free_port()}", 2, 1, 1.2)
    assert time.monotonic() - since < 5


def test_another_program_at_the_port_is_no_process_0():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(
            target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400\r\n"), daemon=True
        ).start()
        with pytest.raises(PacxError, match="is no process 0 that waits"):
            rendezvous.meet(f"localhost:{port}", 2, 1, 5)


@pytest.mark.parametrize(
    "noise", [b"", b"GET / HTTP/1.1\n", b"[" * 4096, b'{"id": 1}\n']
)
def test_a_stranger_at_the_port_changes_nothing(noise):
    port = free_port()
    heard = []
    first = threading.Thread(
        target=lambda: heard.append(meet((0, 2), port=port)), daemon=True
    )
    first.start()
    time.sleep(0.1)
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(noise)
    assert meet((1, 2), port=port) == [""]
    first.join(10)
    assert heard == [[""]]
