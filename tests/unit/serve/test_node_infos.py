"""Rounds of INFO to the nodes: how often, how long, and who waits for which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.resp import encode
from proxy.serve.node_infos import FRESH_S, GAP_S, PATIENCE_S, Infos, NodeInfos


class Node:
    def __init__(self, label: str, replica: bool = False) -> None:
        self.label, self.replica = label, replica


class Timer:
    def __init__(self, at_s: float, call: Callable[[], object]) -> None:
        self.at_s, self.call = at_s, call

    def cancel(self) -> None:
        self.call = lambda: None


class Scene:
    """Nodes that answer when the test says so, and a clock of its own."""

    def __init__(self, *nodes: Node, at_once: bool = False) -> None:
        self.nodes, self.at_once = list(nodes), at_once
        self.now_s = 100.0
        self.timers: list[Timer] = []
        self.asked: list[tuple[Node, bytes, int, Callable[[bytes | None], object]]] = []
        self.raised: list[BaseException] = []
        self.infos = NodeInfos(
            lambda: self.nodes,
            self.ask,
            self.call_later,
            lambda: self.now_s,
            lambda what, error: self.raised.append(error),
        )
        self.told: list[Infos] = []

    def ask(self, node: Node, frame: bytes, *, proto: int, timeout_ns: int, most: int, done: Any) -> None:
        if self.at_once:
            done(document(1))
        else:
            self.asked.append((node, frame, proto, done))

    def call_later(self, delay_s: float, call: Callable[[], object]) -> Timer:
        self.timers.append(Timer(self.now_s + delay_s, call))
        return self.timers[-1]

    def wait(self, whole: bool = False, proto: int = 2) -> None:
        self.infos.wait(whole, proto, self.told.append)

    def after(self, delay_s: float) -> None:
        self.now_s += delay_s
        due = [timer for timer in self.timers if timer.at_s <= self.now_s]
        self.timers = [timer for timer in self.timers if timer.at_s > self.now_s]
        for timer in due:
            timer.call()

    def answer(self, reply: bytes | None, count: int = 1) -> None:
        for _ in range(count):
            self.asked.pop(0)[3](reply)


def document(used: int) -> bytes:
    return encode.bulk(f"# Memory\r\nused_memory:{used}\r\n")


def memory(infos: Infos) -> list[Any]:
    return [node.document and node.document["memory"] for node in infos.nodes]


A, B, C = Node("a:1"), Node("b:1"), Node("c:1", replica=True)


def test_a_round() -> None:
    scene = Scene(A, C)
    scene.wait(proto=3)
    assert [(node, frame, proto) for node, frame, proto, _ in scene.asked] == [
        (A, encode.encode_command("INFO"), 3),
        (C, encode.encode_command("INFO"), 3),
    ]
    scene.answer(document(1))
    assert scene.told == []
    scene.answer(document(2))
    (infos,) = scene.told
    assert memory(infos) == [["used_memory:1"], ["used_memory:2"]]
    assert infos.primaries == [{"memory": ["used_memory:1"]}]
    assert (infos.missing, infos.primaries_missing, infos.whole) == (0, 0, False)
    scene.after(PATIENCE_S)
    assert len(scene.told) == 1


def test_all_wait_for_one_round_and_who_comes_later_for_the_next() -> None:
    scene = Scene(A)
    scene.wait()
    for _ in range(100):
        scene.wait(whole=True)
    assert len(scene.asked) == 1
    scene.answer(document(1))
    assert len(scene.told) == 1
    assert scene.asked == []  # not before GAP_S
    scene.after(GAP_S)
    ((_, frame, _, _),) = scene.asked
    assert frame == encode.encode_command("INFO", "everything")
    scene.answer(document(2))
    assert len(scene.told) == 101
    assert all(memory(infos) == [["used_memory:2"]] and infos.whole for infos in scene.told[1:])


def test_no_more_often_than_that() -> None:
    scene = Scene(A, at_once=True)
    rounds = []
    for _ in range(1000):
        scene.wait()
        scene.after(0.001)
        rounds.append(scene.told[-1].at_s)
    assert len(scene.told) >= 980
    assert len(set(rounds)) <= 1.0 / GAP_S + 2


def test_nodes_that_answer_while_they_are_asked() -> None:
    scene = Scene(A, B, C, at_once=True)
    scene.wait()
    assert len(scene.told) == 1
    assert len(scene.told[0].primaries) == 2


def test_without_nodes() -> None:
    scene = Scene()
    scene.wait()
    assert [infos.nodes for infos in scene.told] == [[]]


def test_a_silent_node_is_missing_and_is_not_waited_for_again() -> None:
    scene = Scene(A, B)
    scene.wait()
    scene.answer(document(1))
    scene.after(PATIENCE_S - 0.01)
    assert scene.told == []
    scene.after(0.01)
    assert memory(scene.told[0]) == [["used_memory:1"], None]
    assert (scene.told[0].missing, scene.told[0].primaries_missing) == (1, 1)
    late = scene.asked.pop()
    scene.wait()
    assert [node for node, _, _, _ in scene.asked] == [A]
    scene.answer(document(3))
    assert memory(scene.told[1]) == [["used_memory:3"], None]
    # What it says late belongs to no round; it is asked again.
    late[3](document(9))
    assert len(scene.told) == 2
    scene.after(GAP_S)
    scene.wait()
    assert [node for node, _, _, _ in scene.asked] == [A, B]
    scene.answer(document(4), 2)
    assert memory(scene.told[2]) == [["used_memory:4"], ["used_memory:4"]]


def test_what_is_no_document_is_none() -> None:
    scene = Scene(A, B, C, Node("d:1"), Node("e:1"))
    scene.wait()
    for reply in (b"-ERR no\r\n", b":1\r\n", None, b"*1\r\n$1\r\na\r\n", b"nonsense"):
        scene.answer(reply)
    assert memory(scene.told[0]) == [None] * 5
    assert (scene.told[0].missing, scene.told[0].primaries_missing) == (5, 4)


def test_what_is_fresh() -> None:
    scene = Scene(A, at_once=True)
    assert scene.infos.fresh(False) is None
    scene.wait()
    assert scene.infos.fresh(False) is scene.told[0]
    assert scene.infos.fresh(True) is None
    scene.after(FRESH_S + 0.01)
    assert scene.infos.fresh(False) is None


def test_one_who_raises_does_not_keep_it_from_the_others() -> None:
    scene = Scene(A)
    scene.infos.wait(False, 2, lambda infos: 1 / 0)
    scene.answer(document(1))
    assert [type(error) for error in scene.raised] == [ZeroDivisionError]
    scene.infos.wait(False, 2, lambda infos: 1 / 0)
    scene.wait()
    scene.after(GAP_S)
    scene.answer(document(1))
    assert (len(scene.raised), len(scene.told)) == (2, 1)


def test_stop_leaves_no_timer() -> None:
    scene = Scene(A)
    scene.wait()
    scene.infos.stop()
    scene.after(PATIENCE_S)
    scene.answer(document(1))
    assert (scene.told, scene.timers) == ([], [])
