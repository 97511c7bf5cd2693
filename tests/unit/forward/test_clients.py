"""What is done with clients from outside: taken in, told new rules, closed."""

from __future__ import annotations

import os

import pytest

from proxy.forward.backend import BackendState
from proxy.forward.clients import accept, close_all, close_idle, close_slow, drain, follow_reads, output_bytes
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, KEY_C, A, B, Play

GET_A, GET_B, GET_C = (encode_command("GET", key) for key in (KEY_A, KEY_B, KEY_C))
SET_A = encode_command("SET", KEY_A, "1")
PING = encode_command("PING")


# -- taken in


def test_a_client_has_the_number_it_was_given(play: Play) -> None:
    stage = play(connections=2)
    stage.taken = 1 << 40
    for _ in range(4):
        stage.client().send(GET_A)
        assert stage.accepted.id == stage.taken
        stage.taken += 1  # the numbers of one worker may be all even: they say nothing about connections
    stage.turn()
    assert [end.get() for end in stage.nodes[A]] == [GET_A * 2, GET_A * 2]
    stage.taken = 4


def test_a_descriptor_that_cannot_be_watched(play: Play) -> None:
    stage = play()
    with open(os.devnull) as file, pytest.raises(OSError, match="cannot watch"):
        accept(stage.path, file.fileno(), stage.settings, "a", "b", 1)
    with pytest.raises(OSError, match="cannot watch"):
        accept(stage.path, 1 << 20, stage.settings, "a", "b", 1)
    assert not stage.path.clients
    assert stage.count("accepted") == 0


def test_settings_serve_one_data_path(play: Play) -> None:
    one, two = play(), play()
    one.client()
    with open(os.devnull) as file, pytest.raises(ValueError, match="another data path"):
        accept(two.path, file.fileno(), one.settings, "a", "b", 1)


# -- reads


def test_clients_follow_a_changed_policy_unless_they_chose_themselves(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])], reads="prefer_replica")
    plain = stage.client()
    choosing = stage.client()
    other = stage.client(reads="prefer_replica")  # of another listener
    choosing.send(encode_command("READWRITE"))
    stage.turn()
    assert choosing.get() == b"+OK\r\n"
    stage.settings.update(reads="replica")
    follow_reads(stage.path, stage.settings, "prefer_replica")
    assert sorted(client.reads for client in stage.path.clients) == ["prefer_replica", "primary", "replica"]
    stage.client()
    assert stage.accepted.reads == stage.accepted.listener_reads == "replica"
    stage.settings.update(reads="primary")
    follow_reads(stage.path, stage.settings, "replica")
    for client in (plain, choosing, other):
        client.send(GET_A)
    stage.turn()
    assert (stage.node(A).get(), stage.node(B).get()) == (GET_A * 2, GET_A)
    with pytest.raises(ValueError, match="not in tuple"):
        follow_reads(stage.path, stage.settings, "nearest")


# -- closed


def test_close_idle_spares_who_waits(play: Play) -> None:
    stage = play()
    idle, waiting = stage.client(), stage.client()
    waiting.send(GET_A)
    stage.turn()
    close_idle(stage.path, 100)
    stage.turn()
    assert not idle.closed
    close_idle(stage.path, 0)
    stage.turn()
    assert idle.closed
    assert not waiting.closed
    stage.node(A).send(bulk("v"))
    stage.turn()
    assert waiting.get() == bulk("v")
    assert stage.count("closed")["idle"] == 1


def test_close_idle_spares_who_waits_for_room(play: Play) -> None:
    stage = play(max_window=100, silent_s=3600.0)
    first, waiting = stage.client(), stage.client()
    first.send(encode_command("SET", KEY_A, "v" * 200))
    stage.turn()
    waiting.send(GET_A)
    stage.turn()
    close_idle(stage.path, 0)
    stage.turn()
    assert not waiting.closed
    stage.node(A).get()
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert stage.node(A).get() == GET_A
    stage.node(A).send(bulk("v"))
    stage.turn()
    assert waiting.get() == bulk("v")


def test_close_idle_spares_who_is_about_to_be_answered(play: Play) -> None:
    """The sweep that ends a command closes the idle behind that."""
    stage = play(timeout_s=100.0)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    for _ in range(20):
        stage.pass_time(10.0)
        stage.router.sweep()
        close_idle(stage.path, 50.0)
        if stage.count("timeouts"):
            break
    stage.turn()
    assert client.get().startswith(b"-ERR timed out")


def test_close_idle_spares_whose_bytes_had_no_turn(play: Play) -> None:
    """After a standstill more clients have spoken than one turn of the loop reads."""
    stage = play()
    idle, unread = stage.client(), stage.client()
    stage.turn()
    unread.send(PING)
    close_idle(stage.path, -1.0)
    stage.turn()
    assert idle.closed
    assert unread.get() == b"+PONG\r\n"


def test_close_idle_does_not_spare_who_is_not_read(play: Play) -> None:
    """One that takes nothing of its replies is not read, so that bytes of it are always waiting."""
    stage = play()
    client = stage.client()
    while client.offer(encode_command("ECHO", b"v" * 4000) * 100):
        stage.turn()
    close_idle(stage.path, -1.0)  # sees what the kernel has of its replies
    assert not stage.count("closed")["idle"]
    close_idle(stage.path, -1.0)
    assert stage.count("closed")["idle"] == 1


def test_a_standstill_is_not_the_time_of_who_sends_slowly(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(PING[:5])
    stage.turn()
    close_slow(stage.path, 100.0)  # sees that one has begun
    stage.pass_time(500.0)
    close_slow(stage.path, 100.0, 450.0)
    assert not stage.count("closed")["slow_frame"]
    stage.pass_time(60.0)
    close_slow(stage.path, 100.0)
    assert stage.count("closed")["slow_frame"] == 1


def test_close_all_ends_everybody_and_nothing_of_a_node(play: Play) -> None:
    stage = play()
    clients = [stage.client() for _ in range(3)]
    clients[0].send(GET_A)
    stage.turn()
    drain(next(iter(stage.path.clients)))
    close_all(stage.path)
    stage.turn()
    assert all(client.closed for client in clients)
    assert stage.count("closed")["shutdown"] == 3
    assert output_bytes(stage.path) == 0
    assert stage.router.nodes[A].backends()[0].state == BackendState.UP
