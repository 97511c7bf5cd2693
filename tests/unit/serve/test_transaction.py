"""WATCH on the stage: on a connection of the client's own, and never a false success."""

from __future__ import annotations

import pytest

from proxy.forward.backend import BackendState
from proxy.resp import errors
from proxy.resp.encode import array, bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, TEXTS, A, B, Stage
from tests.support.dialogue import ASKING, GET_A, PING, REFUSALS, SET_A, D, ask, exchange, moved

MULTI, EXEC, DISCARD, UNWATCH = (encode_command(name) for name in ("MULTI", "EXEC", "DISCARD", "UNWATCH"))
WATCH, WATCH_B = encode_command("WATCH", KEY_A), encode_command("WATCH", KEY_B)
EXISTS = encode_command("EXISTS", KEY_A)
OK, QUEUED, NIL = b"+OK\r\n", b"+QUEUED\r\n", b"*-1\r\n"
BLOCK, TAKEN, DONE = MULTI + SET_A + EXEC, OK + QUEUED, array([OK])
PONG = b"+PONG\r\n"


@pytest.fixture
def stage() -> object:
    made = Stage()
    yield made
    made.close()


def watching(stage: Stage, **settings: object) -> object:
    """A client that watches KEY_A at A."""
    client = stage.client(**settings)
    client.send(WATCH)
    stage.turn()
    exchange(stage, A, WATCH, OK)
    assert client.get() == OK
    return client


def leases(stage: Stage) -> list[object]:
    """Leased connections that are open."""
    return [
        b for node in stage.router.nodes.values() for b in node.backends() if b.leased and b.state == BackendState.UP
    ]


def over(stage: Stage, client: object, leased: int) -> None:
    """It watches nothing any more, what comes next is answered, and so many leases are left."""
    stage.turn()
    for ends in stage.nodes.values():
        for end in ends:
            if end.get() == UNWATCH:
                end.send(OK)
    client.send(WATCH_B + PING)
    stage.turn()
    exchange(stage, B, WATCH_B, OK)
    assert client.get() == OK + PONG
    client.send(UNWATCH)
    stage.turn()
    exchange(stage, B, UNWATCH, OK)
    assert client.get() == OK
    assert len(leases(stage)) == leased + 1


def test_it_is_all_on_one_connection_which_is_given_back(stage: Stage) -> None:
    client = watching(stage)
    client.send(GET_A + MULTI + SET_A + EXEC + PING)
    stage.turn()
    shared = stage.node(A)
    assert shared.get() == GET_A
    assert client.get() == b""
    shared.send(bulk("1"))
    stage.turn()
    assert (client.get(), shared.get()) == (bulk("1") + TAKEN, b"")  # EXEC has waited for GET, PING waits for EXEC
    mine = stage.nodes[A][0]
    assert mine.get() == BLOCK
    mine.send(TAKEN + DONE)
    stage.turn()
    assert client.get() == DONE + PONG
    over(stage, client, 1)
    again = watching_on(stage, mine)
    assert len(leases(stage)) == 2
    again.close()
    stage.turn()
    assert mine.get() == UNWATCH


def watching_on(stage: Stage, end: object) -> object:
    client = stage.client()
    client.send(WATCH)
    stage.turn()
    assert end.get() == WATCH
    end.send(OK)
    stage.turn()
    assert client.get() == OK
    return client


@pytest.mark.parametrize("how", ["exec nil", "unwatch", "discard", "exec abort", "reset", "aborted by the node"])
def test_every_end_of_it(stage: Stage, how: str) -> None:
    client = watching(stage)
    if how == "exec nil":
        client.send(MULTI + SET_A + EXEC)
        stage.turn()
        exchange(stage, A, BLOCK, TAKEN + NIL)
        assert client.get() == TAKEN + NIL
    elif how == "aborted by the node":
        client.send(MULTI + SET_A + EXEC)
        stage.turn()
        exchange(stage, A, BLOCK, OK + b"-OOM no\r\n" + errors.EXECABORT)
        assert client.get() == TAKEN + b"-EXECABORT Transaction discarded because of: OOM no\r\n"
    else:
        said, told = {
            "unwatch": (UNWATCH, OK),
            "discard": (MULTI + SET_A + DISCARD, OK + QUEUED + OK),
            "exec abort": (MULTI + encode_command("GET") + EXEC, OK + errors.wrong_arity(b"get") + errors.EXECABORT),
            "reset": (encode_command("RESET"), b"+RESET\r\n"),
        }[how]
        client.send(said)
        stage.turn()
        assert client.get() == told
        exchange(stage, A, UNWATCH, OK)
    over(stage, client, 1)


@pytest.mark.parametrize("line", [*REFUSALS.values(), moved(B), ask(B)])
@pytest.mark.parametrize("place", ["queued", "exec", "aborted"])
def test_what_is_refused_at_exec_is_nil(stage: Stage, line: bytes, place: str) -> None:
    """Sent again it would be carried out whatever has changed."""
    client = watching(stage)
    client.send(MULTI + SET_A + EXEC)
    stage.turn()
    said = {
        "queued": OK + line + errors.EXECABORT,
        "exec": TAKEN + line,
        "aborted": TAKEN + b"-EXECABORT Transaction discarded because of: " + line[1:],
    }[place]
    exchange(stage, A, BLOCK, said)
    assert client.get() == TAKEN + NIL
    assert leases(stage) == []
    over(stage, client, 0)


def test_a_lost_lease(stage: Stage) -> None:
    client = watching(stage)
    stage.node(A).close()
    stage.turn()
    client.send(WATCH + MULTI + SET_A + EXEC + PING)
    stage.turn()
    assert client.get() == OK + TAKEN + NIL + PONG
    over(stage, client, 0)


def test_a_slot_that_has_moved_meanwhile(stage: Stage) -> None:
    client = watching(stage)
    stage.publish([(B, [], [(0, 5460)]), (A, [], [(5461, 16383)])])
    client.send(WATCH + MULTI + SET_A + EXEC + PING)
    stage.turn()
    assert client.get() == OK + TAKEN + NIL + PONG


def test_what_was_watched_is_nobody_elses(stage: Stage) -> None:
    """The slot has moved and EXEC was never sent: the connection is told before it is somebody else's."""
    client = watching(stage)
    stage.publish([(B, [], [(0, 5460)]), (A, [], [(5461, 16383)])])
    client.send(MULTI + EXEC)
    stage.turn()
    assert client.get() == OK + NIL
    assert stage.node(A).get() == UNWATCH


@pytest.mark.parametrize("said", [array([]), array([OK, OK])])
def test_exec_with_another_number_of_replies(stage: Stage, said: bytes) -> None:
    """Nothing of it could be put in its place."""
    client = stage.client()
    client.send(MULTI + SET_A + encode_command("CLIENT", "GETNAME") + EXEC + PING)
    stage.turn()
    exchange(stage, A, BLOCK, TAKEN + said)
    assert client.get() == OK + QUEUED * 2 + errors.UNEXPECTED_FORM + PONG


def test_answers_of_the_proxys_own_that_are_together_too_long(stage: Stage) -> None:
    client = stage.client()
    client.send(encode_command("CLIENT", "SETNAME", "n" * 4096))
    for what in ("LIB-NAME", "LIB-VER"):
        client.send(encode_command("CLIENT", "SETINFO", what, "n" * 4096))
    info = encode_command("CLIENT", "INFO")
    client.send(MULTI + info * 900 + EXEC + PING)
    stage.turn(20)
    assert stage.drink(client) == OK * 4 + QUEUED * 900 + errors.TOO_LONG + PONG


def test_lost_in_the_middle_of_exec(stage: Stage) -> None:
    client = watching(stage)
    client.send(MULTI + SET_A + EXEC + PING)
    stage.turn()
    exchange(stage, A, BLOCK, TAKEN)
    stage.node(A).close()
    stage.turn(6)
    assert client.get() == TAKEN + TEXTS["lost"] + PONG
    over(stage, client, 0)


def test_moved_at_watch(stage: Stage) -> None:
    client = stage.client()
    client.send(WATCH)
    stage.turn()
    exchange(stage, A, WATCH, moved(B))
    exchange(stage, B, WATCH, OK)
    client.send(MULTI + SET_A + EXEC)
    stage.turn()
    exchange(stage, B, BLOCK, TAKEN + DONE)
    assert client.get() == OK + TAKEN + DONE
    assert len(leases(stage)) == 2


def test_ask_at_watch(stage: Stage) -> None:
    client = stage.client()
    client.send(WATCH)
    stage.turn()
    exchange(stage, A, WATCH, ask(B))
    exchange(stage, B, ASKING + WATCH, OK * 2)
    client.send(WATCH + MULTI + SET_A + EXEC)
    stage.turn()
    exchange(stage, B, ASKING + WATCH, OK * 2)
    exchange(stage, B, ASKING + BLOCK, OK + TAKEN + DONE)
    assert client.get() == OK * 2 + TAKEN + DONE
    over(stage, client, 1)  # it is B's own


@pytest.mark.parametrize("line", [*REFUSALS.values(), moved(D)])
def test_watch_waits_for_a_slot_like_other_commands(stage: Stage, line: bytes) -> None:
    """On the shared connection, which is asked until the slot is served."""
    client = stage.client()
    client.send(WATCH + PING)
    stage.turn()
    exchange(stage, A, WATCH, line)
    exchange(stage, A, EXISTS, REFUSALS["tryagain"])
    exchange(stage, A, EXISTS, b":0\r\n")
    stage.turn()
    for end in stage.nodes[A]:
        if end.get() == WATCH:
            end.send(OK)
    stage.turn()
    assert client.get() == OK + PONG


def test_watch_on_a_node_that_cannot_be_reached(stage: Stage) -> None:
    client = stage.client()
    stage.unreachable.add(A)
    client.send(WATCH)
    stage.turn(6)
    assert client.get() == b""
    stage.publish([(B, [], [(0, 16383)])])
    exchange(stage, B, EXISTS, b":0\r\n")
    exchange(stage, B, WATCH, OK)
    assert client.get() == OK


def test_watch_that_is_refused_for_ever(stage: Stage) -> None:
    client = stage.client()
    client.send(WATCH + PING)
    stage.turn()
    for _ in range(20):
        for end in stage.nodes[A]:
            got = end.get()
            if got:
                end.send(b":0\r\n" if got == EXISTS else REFUSALS["tryagain"])
        stage.turn(1)
    assert client.get() == REFUSALS["tryagain"] + PONG
    over(stage, client, 1)


def test_a_second_watch(stage: Stage) -> None:
    client = watching(stage)
    client.send(WATCH_B)
    stage.turn()
    assert client.get() == errors.CROSSSLOT
    client.send(WATCH)
    stage.turn()
    exchange(stage, A, WATCH, REFUSALS["tryagain"])
    client.send(MULTI + SET_A + EXEC)
    stage.turn()
    assert client.get() == OK + TAKEN + NIL  # what it asked for is not watched


@pytest.mark.parametrize("said", [b":1\r\n", b"*0\r\n", b"$2\r\nOK\r\n"])
def test_nonsense_for_watch(stage: Stage, said: bytes) -> None:
    client = stage.client()
    client.send(WATCH)
    stage.turn()
    exchange(stage, A, WATCH, said)
    client.send(MULTI + SET_A + EXEC)
    stage.turn()
    assert client.get() == OK + TAKEN + NIL


@pytest.mark.parametrize("said", [b":1\r\n", b"+OK\r\n", b"$2\r\nOK\r\n", b"-ERR EXEC without MULTI\r\n"])
def test_nonsense_for_exec(stage: Stage, said: bytes) -> None:
    """The connection is not given to anybody else."""
    client = watching(stage)
    client.send(MULTI + SET_A + EXEC)
    stage.turn()
    exchange(stage, A, BLOCK, TAKEN + said)
    assert client.get() == TAKEN + said
    assert leases(stage) == []


def test_the_cap(stage: Stage) -> None:
    stage.path.leases.most = 1
    one, two = watching(stage), stage.client()
    two.send(WATCH + PING)
    stage.turn()
    assert two.get() == errors.NO_LEASE + PONG
    assert stage.path.leases.refused == 1
    one.close()
    stage.turn()
    exchange(stage, A, UNWATCH, OK)
    two.send(WATCH)
    stage.turn()
    exchange(stage, A, WATCH, OK)
    assert two.get() == OK


def test_the_protocol_and_the_database_of_the_client_at_exec(stage: Stage) -> None:
    stage.context.databases = 16
    client = watching(stage)
    client.send(encode_command("SELECT", "3") + encode_command("HELLO", "3"))
    stage.turn()
    client.get()
    client.send(MULTI + SET_A + EXEC)
    stage.turn()
    hello, select = encode_command("HELLO", "3"), encode_command("SELECT", "3")
    exchange(stage, A, hello + select, b"%0\r\n" + OK)
    exchange(stage, A, BLOCK, TAKEN + b"_\r\n")
    assert client.get() == TAKEN + b"_\r\n"
    other = stage.client()
    other.send(WATCH)
    stage.turn()
    assert len(stage.nodes[A]) == 2  # that one is for RESP3 and database 3 now
    exchange(stage, A, WATCH, OK)


@pytest.mark.parametrize("why", ["refused", "lost"])
def test_a_database_that_cannot_be_selected(stage: Stage, why: str) -> None:
    stage.context.databases = 16
    client = watching(stage)
    client.send(encode_command("SELECT", "3") + MULTI + SET_A + EXEC)
    stage.turn()
    exchange(stage, A, encode_command("SELECT", "3"), errors.DB_INDEX if why == "refused" else b"")
    if why == "lost":
        stage.node(A).close()
        stage.turn()
    assert client.get() == OK + TAKEN + NIL
    assert leases(stage) == []


def test_what_is_read_while_it_watches_is_read_at_the_primary() -> None:
    """A replica may not have yet what EXEC would not find changed."""
    stage = Stage(shards=[(A, [B], [(0, 16383)])], reads="prefer_replica")
    client = stage.client()
    client.send(WATCH)
    stage.turn()
    exchange(stage, A, WATCH, OK)
    client.send(GET_A)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    client.send(UNWATCH + GET_A)
    stage.turn()
    exchange(stage, B, GET_A, bulk("2"))
    assert client.get() == OK + bulk("1") + OK + bulk("2")
    stage.close()


def test_an_empty_one_and_the_proxys_own(stage: Stage) -> None:
    for nil in (False, True):
        client = watching(stage)
        client.send(MULTI + encode_command("SELECT", "0") + EXEC)
        stage.turn()
        exchange(stage, A, MULTI + EXEC, OK + (NIL if nil else b"*0\r\n"))
        assert client.get() == OK + QUEUED + (NIL if nil else array([OK]))


def test_a_reply_that_is_too_long_ends_the_watch() -> None:
    stage = Stage(hard_output=4000)
    client = stage.client()
    client.send(WATCH)
    stage.turn()
    exchange(stage, A, WATCH, OK)
    client.get()
    client.send(MULTI + SET_A + EXEC)
    stage.turn()
    exchange(stage, A, BLOCK, TAKEN + array([bulk("x" * 2000)]))
    assert client.get().startswith(TAKEN + b"-ERR")
    assert stage.accepted.watching == -1
    over(stage, client, 0)
    stage.close()


@pytest.mark.parametrize("said", [WATCH, WATCH + MULTI, WATCH + MULTI + SET_A + EXEC])
@pytest.mark.parametrize("answered", [False, True])
def test_clients_that_leave(stage: Stage, said: bytes, answered: bool) -> None:
    for _ in range(20):
        client = stage.client()
        client.send(said)
        stage.turn()
        for end in stage.nodes[A]:
            if end.get().startswith(WATCH) and answered:
                end.send(OK)
        stage.turn()
        client.close()
        stage.turn()
        for end in stage.nodes[A]:
            if end.get() == UNWATCH:
                end.send(OK)
        stage.turn()
    assert len(leases(stage)) <= 1
    stage.router.sweep()
    assert len(stage.router.nodes[A].backends()) <= 1


def test_topology_that_nobody_knows_or_covers() -> None:
    for shards, told in (([], errors.CLUSTERDOWN), ([(A, [], [(16000, 16383)])], errors.CLUSTERDOWN_UNSERVED)):
        stage = Stage(shards=shards)
        client = stage.client()
        client.send(WATCH + MULTI + EXEC)
        stage.turn()
        assert client.get() == told + OK + b"*0\r\n"
        stage.close()


def test_the_slot_watched_is_the_transactions(stage: Stage) -> None:
    client = watching(stage)
    client.send(MULTI + encode_command("SET", KEY_B, "1") + EXEC)
    stage.turn()
    assert client.get() == OK + errors.CROSSSLOT + errors.EXECABORT
    exchange(stage, A, UNWATCH, OK)
    assert stage.accepted.lease is None
