"""What holds for a listener's clients and what all share."""

from __future__ import annotations

import time

import pytest

from proxy.commands.lookup import CommandTable
from proxy.commands.table import ROWS
from proxy.forward.datapath import ClientSettings
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, A, B, End, Play, Stage

GET_A = encode_command("GET", KEY_A)
PING = encode_command("PING")


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


def test_a_client_begins_with_what_its_connection_says(play: Play) -> None:
    stage = play()
    stage.client()
    assert stage.accepted.address == "10.9.9.9:1"
    assert (stage.accepted.proto, stage.accepted.db, stage.accepted.user, stage.accepted.name) == (2, 0, "default", b"")
    assert abs(time.time() - stage.accepted.last_active_s) < 10


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_client_does_not_age_with_the_wall_clock(step_s: float, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = play()
    stage.client()
    stepped = time.time() + step_s
    monkeypatch.setattr(time, "time", lambda: stepped)
    assert 0 <= stage.accepted.age_s < 1000
    assert 0 <= stepped - stage.accepted.last_active_s < 1000


def test_rejected_connections_are_counted(play: Play) -> None:
    stage = play()
    stage.path.reject()
    assert (stage.count("rejected"), stage.count("accepted")) == (1, 0)


def test_clients_that_left_are_counted_and_told(play: Play) -> None:
    stage = play()
    told: list[int] = []
    first, second = stage.client(), stage.client()
    first.close()
    stage.turn()
    assert stage.path.closed == 1
    stage.path.on_close = lambda: told.append(stage.path.closed)
    second.send(encode_command("QUIT"))
    stage.turn()
    assert (second.get(), told) == (b"+OK\r\n", [2])
    assert not stage.path.clients
    stage.path.on_close = None
    stage.client().close()
    stage.turn()
    assert (stage.path.closed, told) == (3, [2])


# -- settings change under their clients


def test_a_change_that_is_refused_changes_nothing() -> None:
    settings = ClientSettings(max_pending=7)
    with pytest.raises(ValueError, match="not in tuple"):
        settings.update(max_pending=8, reads="nearest")
    with pytest.raises(OverflowError):
        settings.update(max_pending=8, timeout_ns=1 << 70)
    with pytest.raises(TypeError):
        settings.update(pending=8)  # type: ignore[call-arg]
    assert settings.max_pending == 7
    settings.update(max_pending=8)
    settings.update()
    assert (settings.max_pending, settings.max_query) == (8, ClientSettings().max_query)


@pytest.mark.parametrize("reason", ["max_pending", "max_pending_bytes", "soft_output"])
def test_a_client_that_waits_for_room_goes_on_where_there_is_more(play: Play, reason: str) -> None:
    stage = play(**{reason: 1})
    client = stage.client()
    client.send(GET_A * 5)
    stage.turn()
    asked = stage.node(A).get()
    assert len(asked) in (len(GET_A), 2 * len(GET_A))
    stage.settings.update(**{reason: 1 << 30})  # type: ignore[arg-type]
    stage.turn()
    assert asked + stage.node(A).get() == GET_A * 5
    stage.node(A).send(b"$-1\r\n" * 5)
    stage.turn()
    assert client.get() == b"$-1\r\n" * 5


def test_less_room_holds_from_then_on(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A * 5)
    stage.turn()
    stage.settings.update(max_pending=2, max_bulk=10)
    client.send(GET_A * 5 + encode_command("ECHO", "x" * 11))
    stage.turn()
    assert stage.node(A).get() == GET_A * 5
    stage.node(A).send(b"$-1\r\n" * 5)
    for _ in range(3):
        stage.turn()
        stage.node(A).send(b"$-1\r\n" * stage.node(A).get().count(GET_A))
    stage.turn()
    assert client.get() == b"$-1\r\n" * 10 + b"-ERR Protocol error: invalid bulk length\r\n"


def test_a_new_timeout_is_for_new_requests(play: Play) -> None:
    stage = play(timeout_s=1000.0)
    old, new = stage.client(), stage.client()
    old.send(GET_A)
    stage.turn()
    stage.settings.update(timeout_ns=1)
    new.send(GET_A)
    stage.until(new.get, sweep=True)
    assert (old.get(), stage.count("timeouts")) == (b"", 1)
    stage.node(A).send(bulk("1") + bulk("2"))
    stage.turn()
    assert old.get() == bulk("1")


def test_a_password_comes_and_goes(play: Play) -> None:
    """Who was let in stays in, as with Redis's requirepass, until it says RESET; without a password all are."""

    def ping(client: End) -> bytes:
        client.send(PING)
        stage.turn()
        return client.get()

    stage: Stage = play()
    stage.context.client_password = "secret"
    early = stage.client()
    stage.settings.update(password=True)
    late, other = stage.client(), stage.client(password=True)
    noauth = b"-NOAUTH Authentication required.\r\n"
    assert [ping(client) for client in (early, late, other)] == [b"+PONG\r\n", noauth, noauth]
    early.send(encode_command("RESET"))
    stage.turn()
    assert early.get() == b"+RESET\r\n"
    assert ping(early) == noauth
    late.send(PING[:5])  # a command may be half there
    stage.turn()
    stage.settings.update(password=False)
    late.send(PING[5:])
    stage.turn()
    assert late.get() == b"+PONG\r\n"
    assert [ping(client) for client in (early, late, other)] == [b"+PONG\r\n", b"+PONG\r\n", noauth]
