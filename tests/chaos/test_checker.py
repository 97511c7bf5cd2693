"""The judge is judged: histories that must be found guilty, of the right thing, and some that must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checker import Checker, Verdict
from tests.chaos.evidence import Evidence
from tests.chaos.history import (
    ADD,
    DELIVER,
    ECHO,
    GET,
    INCR,
    PAIR,
    POP,
    PUSH,
    SET,
    Fall,
    History,
    Message,
    Op,
    kind_of,
)
from tests.chaos.workload import Contents
from tests.support.raw import encode

MAYBE = "ERR connection to the node was lost after the command was sent; it may have been executed"
DOWN = "CLUSTERDOWN The node for this command cannot be reached"


class Story:
    """A history in the making: operations follow each other, 0.1 s apart, each taking 0.05 s."""

    def __init__(self) -> None:
        self.history = History()
        self.contents = Contents()
        self.now = 100.0
        self._numbers: dict[tuple[str, str], int] = {}

    def op(self, kind: str, key: str, token: str = "", client: str = "a", **fields: Any) -> Op:
        number = self._numbers[client, key] = self._numbers.get((client, key), 0) + 1
        op = Op(client, kind, key, token or f"<{client}.{key}.{number}>", self.now, number=number, **fields)
        self.history.ops.append(op)
        return op

    def ok(self, kind: str, key: str, reply: Any = 1, token: str = "", client: str = "a", **fields: Any) -> Op:
        op = self.op(kind, key, token, client, **fields)
        op.answer(reply, self.now + 0.05)
        self.now += 0.1
        return op

    def error(self, kind: str, key: str, line: str, token: str = "", client: str = "a") -> Op:
        op = self.op(kind, key, token, client)
        op.fail(line, self.now + 0.05)
        self.now += 0.1
        return op

    def judge(self, evidence: Evidence | None = None) -> Verdict:
        return Checker(self.history, self.contents, evidence or Evidence({}), ended=self.now + 60).judge()

    def kinds(self, evidence: Evidence | None = None) -> list[str]:
        return [kind for kind, _ in self.judge(evidence).violations]


@pytest.fixture
def story() -> Story:
    return Story()


def file_of(folder: Path, node: str, *commands: tuple[Any, ...], generation: int = 1) -> list[Path]:
    """A node's append-only file."""
    path = folder / f"{node}-1-appendonly.aof.{generation}.incr.aof"
    path.write_bytes(b"".join(encode(*words) for words in commands))
    return [path]


# -- lists and streams


def test_what_is_all_there_is_innocent(story: Story) -> None:
    story.ok(PUSH, "l", token="<1>")
    story.error(PUSH, "l", MAYBE, token="<2>")  # was executed
    story.error(PUSH, "l", MAYBE, token="<3>")  # was not
    story.error(PUSH, "l", DOWN, token="<4>")
    story.ok(PUSH, "l", token="<5>")
    story.contents.lists["l"] = ["<1>", "<2>", "<5>"]
    assert story.kinds() == []


@pytest.mark.parametrize(("kind", "held"), [(PUSH, "lists"), (ADD, "streams")])
def test_an_acknowledged_write_that_nobody_carried_out_is_lost(story: Story, kind: str, held: str) -> None:
    story.ok(kind, "l", token="<1>")
    story.ok(kind, "l", token="<2>")
    getattr(story.contents, held)["l"] = ["<1>"]
    assert story.kinds() == ["lost"]


def test_what_was_carried_out_twice(story: Story) -> None:
    story.ok(PUSH, "l", token="<1>")
    story.error(PUSH, "l", MAYBE, token="<2>")
    story.contents.lists["l"] = ["<1>", "<2>", "<2>"]
    assert story.kinds() == ["doubled"]


def test_what_was_refused_and_carried_out_all_the_same(story: Story) -> None:
    story.error(PUSH, "l", DOWN, token="<1>")
    story.contents.lists["l"] = ["<1>"]
    assert story.kinds() == ["refused"]


def test_one_clients_writes_to_one_key_in_another_order(story: Story) -> None:
    story.ok(PUSH, "l", token="<1>")
    story.ok(PUSH, "l", token="<2>")
    story.ok(PUSH, "l", token="<3>", client="b")
    story.contents.lists["l"] = ["<3>", "<2>", "<1>"]
    assert story.kinds() == ["order"]


def test_what_the_cluster_lost_is_told_apart(story: Story, tmp_path: Path) -> None:
    """Carried out by the node that fell and by nobody else."""
    story.ok(PUSH, "l", token="<1>")
    fell = story.now
    story.ok(PUSH, "l", token="<2>")  # answered, and never replicated
    story.contents.lists["l"] = ["<1>"]
    files = {
        "1": file_of(tmp_path, "1", ("RPUSH", "l", "<1>"), ("RPUSH", "l", "<2>")),
        "4": file_of(tmp_path, "4", ("RPUSH", "l", "<1>")),
    }
    verdict = story.judge(Evidence(files, [Fall("1", fell, fell + 2)]))
    assert verdict.violations == []
    assert verdict.by_cluster["writes"] == 1
    assert story.kinds(Evidence(files)) == ["lost"]  # nobody fell
    assert story.kinds(Evidence(files, [Fall("2", fell, fell + 2)])) == ["lost"]  # another one did
    files["4"] = files["1"]
    assert story.kinds(Evidence(files, [Fall("1", fell, fell + 2)])) == ["lost"]  # it was replicated, and is gone


def test_a_former_primary_that_goes_on_answering(story: Story, tmp_path: Path) -> None:
    fall = Fall("1", story.now, story.now + 2)
    story.now += 5
    story.ok(PUSH, "l", token="<1>")
    files = {"1": file_of(tmp_path, "1", ("RPUSH", "l", "<1>"))}
    assert story.kinds(Evidence(files, [fall])) == ["stale node"]


# -- counters


def test_counters_that_are_right(story: Story) -> None:
    for value in (1, 2):
        story.ok(INCR, "c", value)
    story.error(INCR, "c", MAYBE)
    story.ok(INCR, "c", 4, client="b")
    story.contents.strings["c"] = "4"
    assert story.kinds() == []


def test_an_increment_carried_out_twice(story: Story) -> None:
    story.ok(INCR, "c", 1)
    story.ok(INCR, "c", 3)
    story.contents.strings["c"] = "3"
    assert story.kinds() == ["doubled"]


def test_an_increment_lost(story: Story, tmp_path: Path) -> None:
    story.ok(INCR, "c", 1)
    story.ok(INCR, "c", 2)
    story.ok(INCR, "c", 2, client="b")
    story.contents.strings["c"] = "2"
    assert story.kinds() == ["lost"]
    files = {"1": file_of(tmp_path, "1", ("INCR", "c"), ("INCR", "c"))}
    assert story.kinds(Evidence(files, [Fall("1", 0, 1)])) == []
    assert story.kinds(Evidence({"1": file_of(tmp_path, "1", ("INCR", "c"))}, [Fall("1", 0, 1)])) == ["lost"]


def test_a_counter_that_a_node_got_when_it_began_anew(story: Story, tmp_path: Path) -> None:
    base = tmp_path / "1-9-appendonly.aof.2.base.aof"
    base.write_bytes(encode("SET", "c", "40"))
    files = {"1": [base, *file_of(tmp_path, "1", ("INCR", "c"), generation=2)]}
    assert Evidence(files, [Fall("1", 0, 1)]).increments("c") == 41


# -- reads


def test_a_read_older_than_its_clients_own_write(story: Story) -> None:
    for _ in range(2):
        story.ok(SET, "r")
    story.ok(GET, "r", 1)
    assert story.kinds() == ["stale"]


def test_a_read_older_than_what_somebody_else_has_read(story: Story) -> None:
    write = story.op(SET, "r")  # never answered
    story.ok(GET, "r", 1, client="b")
    story.ok(GET, "r", 0, client="c")
    assert story.kinds()[:1] == ["stale"]
    assert write.outcome == "unknown"


def test_reads_beside_a_write_may_show_either(story: Story) -> None:
    story.ok(SET, "r")
    write = story.op(SET, "r")
    story.ok(GET, "r", 1, client="b")
    story.ok(GET, "r", 2, client="b")
    write.answer("OK", story.now)
    story.now += 0.1
    story.ok(GET, "r", 2, client="c")
    assert story.kinds() == []


def test_a_stale_read_of_a_replica_is_allowed(story: Story) -> None:
    story.ok(SET, "r")
    story.ok(GET, "r", 0, client="b", replicas=True)
    story.ok(GET, "r", 1, client="c")
    assert story.kinds() == []


def test_a_write_that_the_cluster_lost_is_not_read_and_that_is_no_stale_read(story: Story, tmp_path: Path) -> None:
    story.ok(SET, "r", token="<one>")
    story.ok(SET, "r", token="<two>")
    story.ok(GET, "r", 1)
    files = {
        "1": file_of(tmp_path, "1", ("SET", "r", "1<one>"), ("SET", "r", "2<two>")),
        "4": file_of(tmp_path, "4", ("SET", "r", "1<one>")),
    }
    assert story.kinds(Evidence(files, [Fall("1", story.now, story.now)])) == []
    assert story.kinds(Evidence(files)) == ["stale"]


def test_a_value_that_nobody_wrote(story: Story) -> None:
    story.ok(SET, "r")
    story.ok(GET, "r", 7)
    assert story.kinds() == ["order"]


# -- transactions, queues, groups


def test_half_of_a_transaction(story: Story) -> None:
    story.ok(PAIR, "{t}:t1", ("4", "3"))
    story.contents.lists["{t}:tlog"] = ["<1>"]
    story.contents.strings |= {"{t}:t1": "1", "{t}:t2": "0"}
    assert story.kinds() == ["torn", "torn"]


def test_an_element_for_two_consumers(story: Story) -> None:
    story.ok(PUSH, "q", token="<1>")
    story.ok(POP, "q", "<1>", client="b")
    story.ok(POP, "q", "<1>", client="c")
    assert story.kinds() == ["doubled"]


def test_an_element_that_went_away_with_a_lost_pop(story: Story) -> None:
    """One for each pop whose fate nobody knows, and no more."""
    story.ok(PUSH, "q", token="<1>")
    story.error(POP, "q", "UNBLOCKED force unblock from blocking operation")
    assert story.kinds() == []
    story.ok(PUSH, "q", token="<2>")
    assert story.kinds() == ["lost"]


def test_an_element_that_is_popped_and_still_there(story: Story) -> None:
    story.ok(PUSH, "q", token="<1>")
    story.ok(POP, "q", "<1>")
    story.contents.lists["q"] = ["<1>"]
    assert story.kinds() == ["doubled"]


def test_an_entry_delivered_to_two_consumers_of_a_group(story: Story) -> None:
    story.ok(DELIVER, "s", ["<1>", "<2>"], client="b")
    story.ok(DELIVER, "s", ["<2>"], client="c")
    assert story.kinds() == ["doubled"]
    assert story.kinds(Evidence({"1": []}, [Fall("1", 0, 99)])) == ["doubled"]  # long before
    late = story.history.ops[0]
    assert story.kinds(Evidence({"1": []}, [Fall("1", late.invoked, late.answered - 1.04)])) == ["doubled"]
    late.invoked -= 5  # it was answered by the stopped node when that went on
    assert story.kinds(Evidence({"1": []}, [Fall("1", late.invoked, late.answered - 2)])) == ["stale node"]
    fall = Fall("1", story.history.ops[0].answered, story.now - 0.1)
    assert story.kinds(Evidence({"1": []}, [fall])) == []  # the group's state was not replicated


# -- replies, messages, time


def test_a_reply_that_belongs_to_another_command(story: Story) -> None:
    story.ok(ECHO, "", "<mine>", token="<mine>")
    story.ok(ECHO, "", "<yours>", token="<mine>")
    assert story.kinds() == ["order"]


def test_messages_twice_and_in_another_order(story: Story) -> None:
    story.history.published["c"] = {1, 2, 3, 4}
    story.history.messages = [Message("s", 1, "c", number, 0.0) for number in (1, 2, 2, 4)]
    verdict = story.judge()
    assert [kind for kind, _ in verdict.violations] == ["doubled"]
    assert verdict.missed == 1
    story.history.messages = [Message("s", 1, "c", number, 0.0) for number in (1, 3, 2)]
    assert story.kinds() == ["order"]


def test_messages_that_a_node_itself_gave_out_late(story: Story) -> None:
    story.history.messages = [Message("s", 1, "c", number, 0.0) for number in (1, 2, 3, 2)]
    assert story.kinds() == ["order"]
    story.history.seen_by_nodes = [Message("node4", 1, "c", number, 0.0) for number in (3, 2)]
    verdict = story.judge()
    assert verdict.violations == []
    assert verdict.by_cluster["messages late"] == 1


def test_messages_that_came_late_to_a_node(story: Story) -> None:
    """Whoever had it from one node and has moved to another has it twice; not when both nodes had it at once."""
    story.history.messages = [Message("s", 1, "c", 2, 1.0), Message("s", 1, "c", 2, 2.0)]
    story.history.seen_by_nodes = [Message("node4", 1, "c", 2, 1.0), Message("node5", 1, "c", 2, 1.01)]
    assert story.kinds() == ["doubled"]
    story.history.seen_by_nodes[1].at = 2.0
    verdict = story.judge()
    assert verdict.violations == []
    assert verdict.by_cluster["messages late"] == 1


def test_a_reply_to_nothing(story: Story) -> None:
    story.history.strange.append("a reply to nothing: 1")
    assert story.kinds() == ["order"]


def test_no_answer(story: Story) -> None:
    story.op(GET, "r")
    assert story.kinds() == ["unanswered"]


def test_kinds_of_errors() -> None:
    assert kind_of(MAYBE) == "lost, may be executed"
    assert kind_of(DOWN) == "CLUSTERDOWN"
    assert kind_of("ERR timed out waiting for the node's reply") == "timed out"
