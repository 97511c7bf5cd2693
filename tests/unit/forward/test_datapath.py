"""What holds for a listener's clients and what all share."""

from __future__ import annotations

import pytest

from proxy.commands.lookup import CommandTable
from proxy.commands.table import ROWS
from proxy.forward.datapath import ClientSettings
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, A, B, Play

GET_A = encode_command("GET", KEY_A)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        ClientSettings(reads="nearest")
    with pytest.raises(TypeError):
        ClientSettings(read="primary")  # type: ignore[call-arg]
    with pytest.raises(OverflowError):
        ClientSettings(max_pending=-1)


def test_listeners_of_one_path_have_their_own_settings(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])])
    stage.context.client_password = "secret"
    plain = stage.client()
    strict = stage.client(password=True, max_bulk=10, max_arguments=3)
    reading = stage.client(reads="replica")
    for client in (plain, strict, reading):
        client.send(GET_A)
    stage.turn()
    assert (stage.node(A).get(), stage.node(B).get()) == (GET_A, GET_A)
    assert strict.get() == b"-NOAUTH Authentication required.\r\n"
    strict.send(encode_command("AUTH", "secret") + encode_command("ECHO", "x" * 11))
    plain.send(encode_command("ECHO", "x" * 11))
    stage.turn()
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert strict.get() == b"+OK\r\n-ERR Protocol error: invalid bulk length\r\n"
    assert strict.closed
    assert plain.get() == bulk("1") + bulk("x" * 11)


def test_max_arguments(play: Play) -> None:
    stage = play()
    client = stage.client(max_arguments=3)
    client.send(encode_command("ECHO", "a", "b") + encode_command("ECHO", "a", "b", "c"))
    stage.turn()
    assert client.get() == (
        b"-ERR wrong number of arguments for 'echo' command\r\n-ERR Protocol error: invalid multibulk length\r\n"
    )


def test_the_command_table_may_be_replaced_at_any_time(play: Play) -> None:
    """A client in the middle of a frame, and requests under way, do not notice."""
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_A[:10])
    stage.turn()
    stage.path.table = CommandTable(
        tuple(row for row in ROWS if row.name != "get"), "without get", stage.counters.metrics
    )
    client.send(GET_A[10:])
    stage.turn()
    stage.node(A).send(bulk("1") + bulk("2"))
    stage.turn()
    assert client.get() == bulk("1") + bulk("2")
    commands = stage.count("commands")
    assert (commands["get"]["calls"], commands["other"]["calls"]) == (1, 1)


def test_clients_have_numbers_of_their_own(play: Play) -> None:
    stage = play()
    numbers = []
    for _ in range(3):
        client = stage.client()
        numbers.append(stage.accepted.id)
        client.close()
        stage.turn()
    assert numbers == [1, 2, 3]
    stage.client()
    assert {client.id for client in stage.path.clients} == {4}
    assert stage.accepted.address == "10.9.9.9:1"
    assert (stage.accepted.proto, stage.accepted.db, stage.accepted.user, stage.accepted.name) == (2, 0, "default", b"")
    assert 0 <= stage.accepted.last_active_s - stage.accepted.created_s + 1 < 10


def test_rejected_connections_are_counted(play: Play) -> None:
    stage = play()
    stage.path.reject()
    assert (stage.count("rejected"), stage.count("accepted")) == (1, 0)
