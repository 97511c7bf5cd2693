"""Transactions on the stage: queued by the proxy, sent as one request, sent again whole or not at all."""

from __future__ import annotations

import pytest

from proxy.commands.lookup import CommandTable
from proxy.commands.table import ROWS, SOURCE
from proxy.forward.backend import BackendState
from proxy.forward.request import live
from proxy.resp import errors
from proxy.resp.encode import array, bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, TEXTS, A, B, Play, Stage
from tests.support.dialogue import (
    ASKING,
    GET_A,
    GET_B,
    PING,
    REFUSALS,
    SET_A,
    SET_B,
    ask,
    exchange,
    moved,
    sized,
)

MULTI, EXEC, DISCARD, UNWATCH = (encode_command(name) for name in ("MULTI", "EXEC", "DISCARD", "UNWATCH"))
WATCH_A = encode_command("WATCH", KEY_A)
TABLE = {row.name: row for row in ROWS}
OK, QUEUED = b"+OK\r\n", b"+QUEUED\r\n"
BLOCK = MULTI + SET_A + GET_A + EXEC
TAKEN = OK + QUEUED * 2  # what is swallowed of the node's replies to it, and what the client is told
DONE = array([OK, bulk("1")])
ABORT = errors.EXECABORT
SELECT, ECHO = encode_command("SELECT", "0"), encode_command("ECHO", "x")


def say(stage: Stage, *frames: bytes) -> bytes:
    """A new client says this; what it is told."""
    client = stage.client()
    client.send(b"".join(frames))
    stage.turn()
    return client.get()


# -- queueing


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (encode_command("NOSUCH", "a"), errors.unknown_command(b"NOSUCH", [b"a"])),
        (encode_command("GET"), errors.wrong_arity(b"get")),
        (encode_command("DISCARD", "x"), errors.wrong_arity(b"discard")),
        (encode_command("MULTI", "x"), errors.wrong_arity(b"multi")),
        (encode_command("WATCH"), errors.wrong_arity(b"watch")),
        (encode_command("SHUTDOWN"), errors.NOT_IN_MULTI),
        (encode_command("DEBUG", "JMAP"), errors.not_allowed(b"debug")),
        (SET_B, errors.CROSSSLOT),
        (encode_command("MGET", KEY_A, KEY_B), errors.CROSSSLOT),
        (encode_command("INFO"), errors.not_inside(b"info")),
    ],
)
def test_what_is_refused_while_queueing_aborts(play: Play, bad: bytes, told: bytes) -> None:
    stage = play()
    assert say(stage, MULTI, SET_A, bad, GET_A, EXEC, PING) == OK + QUEUED + told + QUEUED + ABORT + b"+PONG\r\n"
    assert stage.nodes == {}
    assert stage.path.client_memory == 0


def redis_7(stage: Stage) -> None:
    """The table as Redis 7.0 tells it, which has MULTI and WATCH without the flag."""
    rows = [
        row._replace(flags=tuple(flag for flag in row.flags if flag != "no_multi"))
        if row.name in ("multi", "watch")
        else row
        for row in ROWS
    ]
    stage.path.table = CommandTable(rows, SOURCE, stage.counters.metrics)


@pytest.mark.parametrize(("bad", "told"), [(MULTI, errors.MULTI_NESTED), (WATCH_A, errors.WATCH_IN_MULTI)])
def test_nested_ones_on_redis_7(play: Play, bad: bytes, told: bytes) -> None:
    """The transaction goes on."""
    stage = play()
    redis_7(stage)
    client = stage.client()
    client.send(MULTI + SET_A + bad + GET_A + EXEC)
    stage.turn()
    exchange(stage, A, BLOCK, TAKEN + DONE)
    assert client.get() == OK + QUEUED + told + QUEUED + DONE


@pytest.mark.parametrize("bad", [MULTI, WATCH_A])
def test_nested_ones_on_valkey(play: Play, bad: bytes) -> None:
    """The flag is theirs: EXEC fails."""
    stage = play()
    stage.context.valkey_version = "9.1.2"
    told = errors.not_in_transaction(b"multi" if bad == MULTI else b"watch")
    assert say(stage, MULTI, SET_A, bad, GET_A, EXEC) == OK + QUEUED + told + QUEUED + ABORT


@pytest.mark.parametrize(("what", "told"), [(EXEC, errors.EXEC_WITHOUT_MULTI), (DISCARD, errors.DISCARD_WITHOUT_MULTI)])
def test_the_end_of_what_has_not_begun(play: Play, what: bytes, told: bytes) -> None:
    stage = play()
    assert say(stage, what, PING) == told + b"+PONG\r\n"


def test_exec_with_arguments_ends_it(play: Play) -> None:
    stage = play()
    assert say(stage, MULTI, SET_A, encode_command("EXEC", "x"), PING) == OK + QUEUED + errors.EXEC_ARITY + b"+PONG\r\n"


@pytest.mark.parametrize("valkey", [False, True])
def test_what_the_servers_do_not_allow_inside(play: Play, valkey: bool) -> None:
    """By their flag, in the words of each kind of them."""
    stage = play()
    stage.context.valkey_version = "9.1.2" if valkey else ""
    names = [name for name, row in TABLE.items() if "no_multi" in row.flags and row.arity in (1, -1)]
    assert names
    for name in names:
        told = errors.not_in_transaction(name.encode()) if valkey else errors.NOT_IN_MULTI
        assert say(stage, MULTI, encode_command(name), EXEC) == OK + told + ABORT, name


def test_nothing_is_sent_before_exec_and_nothing_after_discard(play: Play) -> None:
    stage = play()
    assert say(stage, MULTI, SET_A, GET_A) == OK + QUEUED * 2
    assert say(stage, MULTI, SET_A, DISCARD, PING) == OK + QUEUED + OK + b"+PONG\r\n"
    assert stage.nodes == {}


def test_an_empty_one(play: Play) -> None:
    stage = play()
    assert say(stage, MULTI, EXEC, PING) == OK + b"*0\r\n+PONG\r\n"
    assert stage.nodes == {}


# -- one request


@pytest.mark.parametrize("cut", range(0, len(MULTI + SET_A + GET_A + EXEC), 5))
def test_it_is_one_request_however_it_comes(play: Play, cut: int) -> None:
    """Nothing of others stands inside it; before and after it is what the client sent before and after."""
    stage = play()
    client, other = stage.client(), stage.client()
    frames = MULTI + SET_A + GET_A + EXEC
    client.send(GET_A + frames[:cut])
    stage.turn(1)
    other.send(GET_A)
    stage.turn(1)
    client.send(frames[cut:] + GET_A)
    stage.turn()
    got = stage.node(A).get()
    assert got.count(BLOCK) == 1
    assert got.replace(BLOCK, b"") == GET_A * 3
    whole = TAKEN + DONE
    replies = {GET_A: bulk("g"), BLOCK: whole}
    order = []
    while got:
        frame = BLOCK if got.startswith(BLOCK) else GET_A
        order.append(replies[frame])
        got = got[len(frame) :]
    stage.node(A).send(b"".join(order))
    stage.turn()
    assert (client.get(), other.get()) == (bulk("g") + TAKEN + DONE + bulk("g"), bulk("g"))


def test_its_replies_cut_anywhere(play: Play) -> None:
    stage = play()
    client = stage.client()
    whole = TAKEN + array([OK, bulk("x\r\n-MOVED 1 a:1\r\n")])
    for cut in range(len(whole) + 1):
        client.send(MULTI + SET_A + GET_A + EXEC)
        stage.turn(1)
        stage.turn(1)
        assert stage.node(A).get() == BLOCK
        stage.node(A).send(whole[:cut])
        stage.turn(1)
        stage.node(A).send(whole[cut:])
        stage.turn(1)
        assert client.get() == TAKEN + whole[len(TAKEN) :]


def test_keyless_commands_ride_along(play: Play) -> None:
    stage = play()
    client = stage.client()
    publish, time = encode_command("PUBLISH", "c", "m"), encode_command("TIME")
    client.send(MULTI + PING + publish + SET_A + ECHO + time + EXEC)
    stage.turn()
    done = array([b"+PONG\r\n", b":0\r\n", OK, bulk("x"), array([bulk("1"), bulk("2")])])
    exchange(stage, A, MULTI + PING + publish + SET_A + ECHO + time + EXEC, OK + QUEUED * 5 + done)
    assert client.get() == OK + QUEUED * 5 + done


def test_blocking_commands_ride_along(play: Play) -> None:
    """They do not block inside a transaction."""
    stage = play()
    client = stage.client()
    pop, wait = encode_command("BLPOP", KEY_A, "0"), encode_command("WAIT", "1", "0")
    client.send(MULTI + pop + wait + EXEC)
    stage.turn()
    exchange(stage, A, MULTI + pop + wait + EXEC, TAKEN + array([b"*-1\r\n", b":0\r\n"]))
    assert client.get() == TAKEN + array([b"*-1\r\n", b":0\r\n"])


def test_one_without_keys_goes_to_any_primary(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(MULTI + PING + EXEC)
    stage.turn()
    (address,) = stage.nodes
    exchange(stage, address, MULTI + PING + EXEC, OK + QUEUED + array([b"+PONG\r\n"]))
    assert client.get() == OK + QUEUED + array([b"+PONG\r\n"])


def test_it_does_not_read_from_replicas(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])], reads="prefer_replica")
    client = stage.client()
    client.send(MULTI + GET_A + EXEC)
    stage.turn()
    exchange(stage, A, MULTI + GET_A + EXEC, OK + QUEUED + array([bulk("1")]))
    assert (client.get(), list(stage.nodes)) == (OK + QUEUED + array([bulk("1")]), [A])


# -- refused, lost


@pytest.mark.parametrize("place", ["queued", "exec", "aborted"])
@pytest.mark.parametrize("why", [*REFUSALS])
def test_a_refusal_sends_it_again_whole(play: Play, why: str, place: str) -> None:
    """Told for a queued command, as EXEC's own reply, or (when the role was lost in between) within EXECABORT."""
    stage = play()
    client = stage.client()
    client.send(MULTI + SET_A + GET_A + EXEC)
    stage.turn()
    line = REFUSALS[why]
    said = {
        "queued": OK + line + QUEUED + ABORT,
        "exec": TAKEN + line,
        "aborted": TAKEN + b"-EXECABORT Transaction discarded because of: " + line[1:],
    }[place]
    exchange(stage, A, BLOCK, said)
    exchange(stage, A, BLOCK, TAKEN + DONE)
    assert client.get() == TAKEN + DONE


@pytest.mark.parametrize("place", ["queued", "exec"])
@pytest.mark.parametrize("how", ["moved", "ask"])
def test_a_redirection_is_followed_whole(play: Play, how: str, place: str) -> None:
    stage = play()
    client = stage.client()
    client.send(MULTI + SET_A + GET_A + EXEC)
    stage.turn()
    line = moved(B) if how == "moved" else ask(B)
    exchange(stage, A, BLOCK, OK + QUEUED + line + ABORT if place == "queued" else TAKEN + line)
    prefix, more = (b"", b"") if how == "moved" else (ASKING, OK)
    exchange(stage, B, prefix + BLOCK, more + TAKEN + DONE)
    assert client.get() == TAKEN + DONE


def test_an_aborted_one_that_is_no_refusal(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(MULTI + SET_A + GET_A + EXEC)
    stage.turn()
    line = b"-EXECABORT Transaction discarded because of: OOM command not allowed.\r\n"
    exchange(stage, A, BLOCK, TAKEN + line)
    assert client.get() == TAKEN + line


def test_an_error_inside_is_not_a_redirection(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(MULTI + SET_A + GET_A + EXEC)
    stage.turn()
    exchange(stage, A, BLOCK, TAKEN + array([moved(B), REFUSALS["tryagain"]]))
    assert client.get() == TAKEN + array([moved(B), REFUSALS["tryagain"]])
    assert B not in stage.nodes


@pytest.mark.parametrize("answered", [b"", OK, TAKEN, TAKEN + DONE[:8]])
def test_a_write_lost_after_it_was_sent(play: Play, answered: bytes) -> None:
    stage = play()
    client = stage.client()
    client.send(MULTI + SET_A + GET_A + EXEC)
    stage.turn()
    exchange(stage, A, BLOCK, answered)
    stage.node(A).close()
    stage.turn(6)
    assert client.get() == TAKEN + TEXTS["lost"]


@pytest.mark.parametrize("answered", [b"", OK, TAKEN])
def test_one_of_reads_alone_is_sent_again(play: Play, answered: bytes) -> None:
    stage = play()
    client = stage.client()
    client.send(MULTI + GET_A + PING + EXEC)
    stage.turn()
    exchange(stage, A, MULTI + GET_A + PING + EXEC, answered)
    stage.node(A).close()
    stage.turn()
    exchange(stage, A, MULTI + GET_A + PING + EXEC, TAKEN + DONE)
    assert client.get() == TAKEN + DONE


@pytest.mark.parametrize("node_says", [b":1\r\n", b"+OK\r\n", b"*1\r\n+OK\r\n", b"$-1\r\n", b"_\r\n"])
def test_nonsense_from_the_node(play: Play, node_says: bytes) -> None:
    """Is passed on: nobody else gets it, and what comes next is paired rightly."""
    stage = play()
    client = stage.client()
    client.send(MULTI + SET_A + GET_A + EXEC + GET_A)
    stage.turn()
    exchange(stage, A, BLOCK + GET_A, TAKEN + node_says + bulk("next"))
    assert client.get() == TAKEN + node_says + bulk("next")


def test_full_windows(play: Play) -> None:
    """EXEC waits for room like any command, and is sent once."""
    stage = play(max_window=100)
    other, client = stage.client(), stage.client()
    other.send(sized(300))
    stage.turn()
    client.send(MULTI + SET_A + GET_A + EXEC + PING)
    stage.turn()
    assert client.get() == TAKEN
    exchange(stage, A, sized(300), OK)
    exchange(stage, A, BLOCK, TAKEN + DONE)
    assert (client.get(), other.get()) == (DONE + b"+PONG\r\n", OK)


# -- limits


def test_its_bytes_have_a_limit(play: Play) -> None:
    stage = play(max_query=1000)
    client = stage.client()
    client.send(MULTI + sized(400) * 2)
    stage.turn()
    held = stage.path.client_memory
    assert held >= 800
    client.send(sized(400) + GET_A + EXEC + PING)
    stage.turn()
    assert client.get() == OK + QUEUED * 2 + errors.TRANSACTION_TOO_LONG + QUEUED + ABORT + b"+PONG\r\n"
    assert (stage.path.client_memory, stage.nodes) == (0, {})


def test_what_the_proxy_answers_has_the_same_limit_and_one_of_its_own(play: Play) -> None:
    stage = play()
    client = stage.client()
    stage.pour(client, MULTI + SELECT * 1001 + EXEC)
    assert stage.drink(client) == OK + QUEUED * 1000 + errors.TRANSACTION_TOO_LONG + ABORT
    assert stage.path.client_memory == 0
    stage = play(max_query=1000)
    name = encode_command("CLIENT", "SETNAME", "x" * 400)
    assert say(stage, MULTI, sized(400), name, EXEC) == OK + QUEUED + errors.TRANSACTION_TOO_LONG + ABORT


@pytest.mark.parametrize("end", [EXEC, DISCARD, b"", encode_command("RESET"), encode_command("QUIT"), b"*a\r\n"])
def test_memory_is_given_back(play: Play, end: bytes) -> None:
    stage = play()
    client = stage.client()
    client.send(MULTI + sized(10_000) + SELECT)
    stage.turn()
    assert stage.path.client_memory > 10_000
    client.send(end)
    stage.turn()
    if not end:
        client.close()
        stage.turn()
    if end == EXEC:
        stage.node(A).close()
        stage.turn(6)
    assert stage.path.client_memory == 0


# -- answered here


def test_the_proxys_own_answers_are_in_their_places(play: Play) -> None:
    """Carried out with EXEC, not before."""
    stage = play()
    client = stage.client()
    setname, getname = encode_command("CLIENT", "SETNAME", "me"), encode_command("CLIENT", "GETNAME")
    client.send(MULTI + getname + SET_A + setname + getname + GET_A + SELECT + EXEC + PING)
    stage.turn()
    assert (client.get(), stage.accepted.name) == (OK + QUEUED * 6, b"")
    exchange(stage, A, BLOCK, TAKEN + DONE)
    assert client.get() == array([b"$-1\r\n", OK, OK, bulk("me"), bulk("1"), OK]) + b"+PONG\r\n"


def test_only_the_proxys_own_answers(play: Play) -> None:
    stage = play()
    told = array([b":1\r\n", errors.NOT_AN_INTEGER, errors.SELECT_IN_CLUSTER, OK])
    client_id, bad, other = encode_command("CLIENT", "ID"), encode_command("SELECT", "x"), encode_command("SELECT", "5")
    assert say(stage, MULTI, client_id, bad, other, UNWATCH, EXEC, PING) == OK + QUEUED * 4 + told + b"+PONG\r\n"
    assert stage.nodes == {}


def test_they_are_not_carried_out_when_it_fails(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(MULTI + SET_A + encode_command("CLIENT", "SETNAME", "me") + EXEC + PING)
    stage.turn()
    exchange(stage, A, MULTI + SET_A + EXEC, OK + b"-OOM no\r\n" + ABORT)
    assert client.get() == OK + QUEUED * 2 + b"-EXECABORT Transaction discarded because of: OOM no\r\n+PONG\r\n"
    assert stage.accepted.name == b""


@pytest.mark.parametrize(
    "node_says", [b"*0\r\n", b"*1\r\n:1\r\n", b"*3\r\n:1\r\n:2\r\n:3\r\n", b":1\r\n", b"*?\r\n:1\r\n.\r\n"]
)
def test_nonsense_beside_the_proxys_own_answers(play: Play, node_says: bytes) -> None:
    """Never an exception; one whole reply."""
    stage = play()
    client = stage.client()
    client.send(MULTI + SET_A + SELECT + GET_A + SELECT + EXEC + PING)
    stage.turn()
    exchange(stage, A, BLOCK, TAKEN + node_says)
    said = client.get()
    assert said.startswith(OK + QUEUED * 4)
    assert said.endswith(b"+PONG\r\n")
    assert stage.raised == []


def test_select_and_hello_that_would_change_what_comes_after(play: Play) -> None:
    stage = play()
    stage.context.databases = 16
    assert say(stage, MULTI, encode_command("SELECT", "3"), EXEC) == OK + errors.SELECT_INSIDE + ABORT
    assert (
        say(stage, MULTI, encode_command("HELLO", "3"), EXEC, PING) == OK + errors.HELLO_INSIDE + ABORT + b"+PONG\r\n"
    )
    assert say(stage, MULTI, encode_command("SELECT", "99"), EXEC) == OK + QUEUED + array([errors.DB_INDEX])


# -- leaving it


def test_reset_and_quit_inside(play: Play) -> None:
    stage = play()
    assert (
        say(stage, MULTI, SET_A, encode_command("RESET"), EXEC)
        == OK + QUEUED + b"+RESET\r\n" + errors.EXEC_WITHOUT_MULTI
    )
    client = stage.client()
    client.send(MULTI + SET_A + encode_command("QUIT") + EXEC)
    stage.turn()
    assert (client.get(), client.closed) == (OK + QUEUED + OK, True)
    assert stage.nodes == {}


@pytest.mark.parametrize("said", [MULTI, MULTI + SET_A, MULTI + SET_A[:9], MULTI + SET_A + EXEC, MULTI + SELECT + EXEC])
def test_a_client_that_leaves(play: Play, said: bytes) -> None:
    stage = play()
    client = stage.client()
    client.send(said)
    stage.turn(1)
    client.close()
    stage.turn()
    if stage.nodes:
        stage.node(A).send(OK + QUEUED + array([OK]))
        stage.turn()
    assert (stage.path.client_memory, live()) == (0, stage.live)


def test_ten_thousand_of_nothing(play: Play) -> None:
    stage = play()
    client = stage.client()
    stage.pour(client, MULTI * 10_000)
    assert stage.drink(client) == OK + errors.NOT_IN_MULTI * 9_999
    for _ in range(1000):
        assert say(stage, MULTI) == OK
    assert stage.path.client_memory == 0


def test_two_protocols(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(encode_command("HELLO", "3") + MULTI + SET_A + GET_A + EXEC)
    stage.turn()
    client.get()
    (backend,) = (backend for backend in stage.router.nodes[A].backends() if backend.state == BackendState.UP)
    assert backend.proto == 3
    exchange(stage, A, BLOCK, TAKEN + b"*2\r\n+OK\r\n%1\r\n+a\r\n:1\r\n")
    assert client.get().endswith(b"*2\r\n+OK\r\n%1\r\n+a\r\n:1\r\n")


def test_a_second_slot_is_told_where_it_stands(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(MULTI + GET_B + PING + GET_A + EXEC + MULTI + SET_A + GET_A + EXEC)
    stage.turn()
    assert client.get() == OK + QUEUED * 2 + errors.CROSSSLOT + ABORT + TAKEN
    exchange(stage, A, BLOCK, TAKEN + DONE)
    assert client.get() == DONE
