"""Questions of the proxy's own to a node, in a dialogue with it."""

from __future__ import annotations

from typing import Any

from proxy.cluster.topology import Address
from proxy.forward.gate import set_paused
from proxy.forward.question import ask_node
from proxy.forward.request import live
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import TEXTS, A, B, C, Play, Stage
from tests.support.dialogue import GET_A, REFUSALS, SET_A, exchange, pending

INFO = encode_command("INFO")


def ask(
    stage: Stage, address: Address = A, *, timeout_s: float = 5.0, most: int = 1 << 20, done: Any = None
) -> list[Any]:
    """What it was answered, when it was."""
    told: list[Any] = []
    ask_node(
        stage.exchange,
        stage.router.nodes[address],
        INFO,
        proto=2,
        timeout_ns=int(timeout_s * 1e9),
        most=most,
        done=done or told.append,
        raised=lambda what, error: stage.raised.append((what, error)),
    )
    stage.turn()
    return told


def test_among_the_clients_commands(play: Play) -> None:
    """On the connection they share, in its place; nobody gets another's reply."""
    stage = play()
    client = stage.client()
    client.send(SET_A)
    stage.turn(1)
    told = ask(stage)
    client.send(GET_A)
    stage.turn()
    exchange(stage, A, SET_A + INFO + GET_A, b"+OK\r\n" + bulk("doc") + bulk("1"))
    assert told == [bulk("doc")]
    assert client.get() == b"+OK\r\n" + bulk("1")
    assert pending(stage) == 0


def test_cut_anywhere(play: Play) -> None:
    reply = bulk("x" * 50)
    for cut in range(1, len(reply)):
        stage = play()
        told = ask(stage)
        stage.node(A).send(reply[:cut])
        stage.turn()
        assert told == []
        stage.node(A).send(reply[cut:])
        stage.turn()
        assert told == [reply], cut


def test_each_node_by_itself(play: Play) -> None:
    stage = play()
    told = {address: ask(stage, address) for address in (A, B, C)}
    for address in (C, A, B):
        exchange(stage, address, INFO, bulk(str(address)))
    assert told == {address: [bulk(str(address))] for address in (A, B, C)}


def test_an_error_line_is_an_answer(play: Play) -> None:
    stage = play()
    told = ask(stage)
    exchange(stage, A, INFO, b"-NOPERM no\r\n")
    assert told == [b"-NOPERM no\r\n"]


def test_too_long(play: Play) -> None:
    stage = play()
    told = ask(stage, most=1000)
    assert stage.node(A).get() == INFO
    stage.pour(stage.node(A), bulk(b"x" * 300_000))
    stage.turn()
    assert told == [None]
    told = ask(stage, most=1000)
    exchange(stage, A, INFO, bulk("short"))
    assert told == [bulk("short")]


def test_not_in_time(play: Play) -> None:
    """Its late reply is dropped, and the next one's is not taken for it."""
    stage = play()
    told = ask(stage, timeout_s=0.01)
    stage.until(lambda: told, sweep=True)
    assert told == [TEXTS["timeout"]]
    again = ask(stage)
    stage.node(A).send(bulk("late") + bulk("now"))
    stage.turn()
    assert (told, again) == ([TEXTS["timeout"]], [bulk("now")])


def test_a_lost_connection(play: Play) -> None:
    """It is asked again: it only reads. What had come of the reply does not count."""
    stage = play()
    told = ask(stage)
    stage.node(A).send(bulk("x" * 1000)[:500])
    stage.turn()
    stage.node(A).close()
    stage.until(lambda: len(stage.nodes[A]) == 2)
    stage.turn()
    exchange(stage, A, INFO, bulk("whole"))
    assert told == [bulk("whole")]


def test_a_refusal_is_tried_again_until_its_time_is_over(play: Play) -> None:
    stage = play()
    told = ask(stage)
    exchange(stage, A, INFO, REFUSALS["loading"])
    stage.turn()
    exchange(stage, A, INFO, bulk("loaded"))
    assert told == [bulk("loaded")]


def test_a_node_that_cannot_be_reached(play: Play) -> None:
    stage = play(failover_s=0.0)
    stage.unreachable.add(A)
    told = ask(stage, timeout_s=0.05)
    stage.until(lambda: told, sweep=True)
    assert told[0].startswith(b"-")


def test_a_node_that_left_the_topology(play: Play) -> None:
    stage = play()
    node = stage.router.nodes[A]
    stage.publish([(B, [], [(0, 16383)])])
    told: list[Any] = []
    options: dict[str, Any] = {"timeout_ns": 10**9, "most": 100, "raised": lambda what, error: None}
    ask_node(stage.exchange, node, INFO, proto=2, done=told.append, **options)
    stage.turn()
    assert told == [TEXTS["gone"]]


def test_done_that_raises_is_reported(play: Play) -> None:
    stage = play()
    before = live()
    ask(stage, done=lambda reply: 1 / 0)
    exchange(stage, A, INFO, bulk("x"))
    assert [type(error) for _, error in stage.raised] == [ZeroDivisionError]
    assert live() == before
    stage.raised.clear()


def test_another_question_from_within_the_answer(play: Play) -> None:
    stage = play()
    told: list[Any] = []
    ask(stage, done=lambda reply: told.append(ask(stage, B)))
    exchange(stage, A, INFO, bulk("first"))
    exchange(stage, B, INFO, bulk("second"))
    assert told == [[bulk("second")]]


def test_the_end_of_the_worker_answers_what_is_open(play: Play) -> None:
    stage = play()
    told = ask(stage)
    stage.close()
    assert len(told) <= 1


def test_it_does_not_wait_for_a_pause(play: Play) -> None:
    """It was asked before, and is to be asked again: whoever asks wants to know in time."""
    stage = play()
    stage.unreachable.add(A)
    told = ask(stage)
    assert told == []
    set_paused(stage.path, [stage.router.nodes[A]])
    stage.turn()
    assert told == [TEXTS["down"]]
