"""SCAN: its grammar, its pages, and that nothing that happens meanwhile hides a key."""

from __future__ import annotations

import random

import pytest

from proxy.cluster.slot import slot_of
from proxy.resp import errors
from proxy.serve.scan import only_slot
from proxy.serve.scan_cursor import Position, encode, mark
from proxy.serve.scan_page import Page, Wanted
from tests.unit.serve.scan_stage import Node, Stage

INVALID, SYNTAX, NOT_INTEGER = errors.INVALID_CURSOR, errors.SYNTAX, errors.NOT_AN_INTEGER


@pytest.fixture(params=[True, False], ids=["table-per-slot", "one-table"])
def stage(request: pytest.FixtureRequest) -> Stage:
    return Stage(by_slot=request.param)


def names(count: int, prefix: str = "key:") -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


# Grammar


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("x",), INVALID),
        (("-1",), INVALID),
        (("12",), INVALID),
        (("x", "COUNT", 0), INVALID),
        ((0, "COUNT", 0), SYNTAX),
        ((0, "COUNT", -5), SYNTAX),
        ((0, "count", "x"), NOT_INTEGER),
        ((0, "COUNT", 2**63), NOT_INTEGER),
        ((0, "COUNT", "010"), NOT_INTEGER),
        ((0, "COUNT"), SYNTAX),
        ((0, "MATCH"), SYNTAX),
        ((0, "COUNT", 1, "FOO"), SYNTAX),
        ((0, "COUNT", "x", "COUNT", 0), NOT_INTEGER),
        ((0, "COUNT", 0, "COUNT", "x"), SYNTAX),
        ((0, "NOVALUES"), b"-ERR NOVALUES option can only be used in HSCAN\r\n"),
        ((0, "TYPE", "nosuch"), b"-ERR unknown type name 'nosuch'\r\n"),
        ((0, "TYPE", "nosuch", "COUNT", 0), b"-ERR unknown type name 'nosuch'\r\n"),
        ((0, "COUNT", 0, "TYPE", "nosuch"), SYNTAX),
        ((0, "TYPE", "unheard", "COUNT", 0), SYNTAX),
    ],
)
def test_errors_come_in_redis_order(words: tuple[str | int, ...], wanted: bytes, stage: Stage) -> None:
    assert stage.scan(*words) == wanted


@pytest.mark.parametrize("word", ["0", "00", "0000000000000000000000000"])
def test_leading_zeros(word: str, stage: Stage) -> None:
    assert stage.scan(word) == (b"0", [])


@pytest.mark.parametrize(
    ("pattern", "slot"),
    [
        (b"{tag}*", slot_of(b"tag")),
        (b"a{tag}b?", slot_of(b"tag")),
        (b"whole", slot_of(b"whole")),
        (b"{}x", slot_of(b"{}x")),
        (b"{}x*", None),
        (b"{a*}", None),
        (b"{a*}{tag}", None),
        (b"*{tag}", None),
        (b"\\{tag}*", None),
        (b"[{]tag}", None),
        (b"{t{ag}*", slot_of(b"t{ag")),
        (b"x}{tag}*", slot_of(b"tag")),
        (b"*", None),
    ],
)
def test_which_slot_a_pattern_is_about(pattern: bytes, slot: int | None) -> None:
    assert only_slot(pattern) == slot


# Pages


def test_an_empty_database_takes_one_call(stage: Stage) -> None:
    assert stage.scan(0) == (b"0", [])
    assert stage.parts <= 6


def test_a_few_keys_take_one_call(stage: Stage) -> None:
    keys = stage.put(*names(5))
    assert sorted(stage.scan_all("COUNT", 1)) == keys
    assert stage.pages == 1


@pytest.mark.parametrize("count", [1, 10, 100, 1000, 2**62])
def test_pages_follow_count(count: int, stage: Stage) -> None:
    keys = stage.put(*names(600))
    assert sorted(stage.scan_all("COUNT", count)) == sorted(keys)
    assert stage.pages <= 600 // min(count, 200) * 1.5 + 35


@pytest.mark.parametrize(
    ("keys", "count", "slots"),
    [(0, 10, 512), (16384, 10, 10), (200_000, 10, 1), (200_000, 1000, 81), (10**7, 2**62, 13)],
)
def test_how_many_slots_are_asked_for(keys: int, count: int, slots: int, stage: Stage) -> None:
    """So many that none of them is likely to be cut off."""
    page = Page(stage.ctx, 0, Wanted(count, b"", b"", 0, 16383), Position(0))
    stage.ctx.owners = lambda: [(0, 16383, "A")]
    stage.ctx.key_counts[0, "A"] = keys
    page.owners = [(0, 16383, "A")]
    assert page.slots_for_count() == slots


def test_types_patterns_and_what_has_expired(stage: Stage) -> None:
    strings = stage.put(*names(300, "s"))
    lists = stage.put(*names(300, "l"), kind="list")
    stage.put(*names(300, "x"), kind="none")
    assert set(stage.scan_all("COUNT", 50)) == {*strings, *lists}
    assert set(stage.scan_all("COUNT", 50, "TYPE", "LIST")) == {*lists}
    assert set(stage.scan_all("COUNT", 50, "MATCH", "?1*")) == {key for key in (*strings, *lists) if key[1:2] == b"1"}
    assert set(stage.scan_all("COUNT", 50, "MATCH", "*9", "TYPE", "string")) == {k for k in strings if k[-1:] == b"9"}
    assert stage.scan_all("COUNT", 50, "TYPE", "unheard") == []


def test_a_tag_is_looked_for_in_its_slot_only(stage: Stage) -> None:
    stage.put(*names(500))
    keys = stage.put(*names(20, "{tag}"))
    assert sorted(stage.scan_all("MATCH", "{tag}*")) == sorted(keys)
    assert stage.scan(0, "MATCH", "{tag}1")[0] == b"0"
    # A cursor from elsewhere leads there, or to the end.
    slot = slot_of(b"tag")
    assert sorted(stage.scan(encode(Position(slot - 1)), "MATCH", "{tag}*")[1]) == sorted(keys)
    assert stage.scan(encode(Position(slot + 1)), "MATCH", "{tag}*") == (b"0", [])


def test_a_slot_with_very_many_keys(stage: Stage) -> None:
    keys = stage.put(*names(11_000, "{tag}"), *names(100))
    found = stage.scan_all("COUNT", 700)
    assert set(found) == set(keys)
    assert len(found) == len(keys)


def test_a_slot_goes_on_at_another_process_from_its_beginning(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.serve.scan_slot._COUNT_LEAST", {True: 500, False: 500})
    keys = set(stage.put(*names(11_000, "{tag}")))
    cursor, found = b"0", set[bytes]()
    for turn in range(200):
        cursor, page = stage.scan(cursor, "COUNT", 1000)
        found = found | set(page)
        if cursor == b"0":
            break
        if turn == 3:
            for node in stage.nodes:
                node.restart()
    assert found == keys
    assert cursor == b"0"
    assert turn > 11


def test_a_cursor_with_a_mark_that_nobody_gave(stage: Stage) -> None:
    keys = stage.put(*names(50, "{tag}"))
    for target in (False, True):
        at = Position(slot_of(b"tag"), 30_000, mark(b"nobody"), target)
        found = set(stage.scan(encode(at), "COUNT", 100)[1])
        if not found:
            found = set(stage.scan_all("COUNT", 100))
        assert found == set(keys)


def test_a_believed_owner_that_is_wrong(stage: Stage) -> None:
    keys = stage.put(*names(400))
    rng = random.Random(1)
    for slot in rng.sample(range(16384), 100):
        stage.believe(slot, rng.choice(stage.nodes))
    assert set(stage.scan_all("COUNT", 60)) == set(keys)


def test_a_node_that_is_down_is_said(stage: Stage) -> None:
    """Never a silent smaller answer: what comes before it, then its error."""
    keys = stage.put(*names(30))
    stage.down.add("B")
    cursor, page = stage.scan(0)
    assert set(page) == {key for key in keys if slot_of(key) in stage.nodes[0].owned}
    assert stage.scan(cursor) == b"-CLUSTERDOWN The node for this command cannot be reached\r\n"
    stage.down.clear()
    assert {*page, *stage.scan(cursor)[1]} == set(keys)


def test_a_hostile_pattern_ends(stage: Stage) -> None:
    stage.put(*(f"{{tag}}{n}" + "a" * 3000 for n in range(100)))
    pattern = "{tag}*" + "a" * 2000 + "b"
    got = stage.scan(0, "MATCH", pattern)
    assert got == b"-ERR the pattern takes too long to match against the keys of this page\r\n"


@pytest.mark.parametrize(
    "answer",
    [b"+OK\r\n", b"*0\r\n", b"$1\r\nx\r\n", b"*3\r\n:1\r\n:2\r\n:3\r\n", b"-ERR broken\r\n", b"*-1\r\n", b"_\r\n"],
)
def test_a_broken_node(answer: bytes, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.put(*names(3))
    monkeypatch.setattr(stage, "carry_out", lambda part: answer)
    large = encode(Position(5, 9, 9))
    for cursor in (0, encode(Position(5)), large, encode(Position(5, 9, 9, True))):
        for words in ((), ("MATCH", "{a}*"), ("TYPE", "list")):
            got = stage.scan(cursor, *words)
            assert isinstance(got, bytes), got
            assert got.startswith(b"-ERR")


# What happens meanwhile


def test_a_slot_that_is_half_moved(stage: Stage) -> None:
    keys = stage.put(*names(30, "{tag}"))
    slot = slot_of(b"tag")
    stage.begin_move(slot, stage.nodes[0] if slot not in stage.nodes[0].owned else stage.nodes[1])
    for key in keys[:13]:
        stage.move_key(key)
    for words in ((), ("MATCH", "{tag}*"), ("TYPE", "string"), ("COUNT", 1)):
        assert set(stage.scan_all(*words)) == set(keys)
    assert stage.scan_all("TYPE", "list") == []


def test_a_large_slot_that_is_half_moved(stage: Stage) -> None:
    keys = stage.put(*names(11_000, "{tag}"))
    slot = slot_of(b"tag")
    stage.begin_move(slot, stage.nodes[0] if slot not in stage.nodes[0].owned else stage.nodes[1])
    for key in keys[:5000]:
        stage.move_key(key)
    assert set(stage.scan_all("COUNT", 1500)) == set(keys)


@pytest.mark.parametrize("most", [10_000, 5], ids=["at once", "in pages"])
@pytest.mark.parametrize("when", range(1, 25))
def test_a_slot_that_goes_there_and_back_between_two_rounds(
    when: int, most: int, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is migrating to the same target before and after, but what was at the target is at the source."""
    monkeypatch.setattr("proxy.serve.scan_page.KEYS_MOST", most)
    monkeypatch.setattr("proxy.serve.scan_slot._COUNT_LEAST", {True: 4, False: 4})
    monkeypatch.setattr("proxy.serve.scan_page._LARGE_LEAST", 5)
    keys = stage.put(*names(40, "{tag}"))
    slot = slot_of(b"tag")
    source = stage.owner(slot)
    target = next(node for node in stage.nodes if node is not source)
    stage.begin_move(slot, target)
    for key in keys[:20]:
        stage.move_key(key)
    calls = 0

    def there_and_back() -> None:
        nonlocal calls
        calls += 1
        if calls == when:
            stage.end_move(slot)
            stage.begin_move(slot, source)
            stage.end_move(slot)
            stage.begin_move(slot, target)

    stage.meanwhile = there_and_back
    assert set(stage.scan_all("COUNT", 6, "MATCH", "{tag}*")) == set(keys)


class Chaos:
    """Moves keys of some slots to and fro, one small step each time it is called."""

    def __init__(self, stage: Stage, slots: list[int], seed: int, restarts: bool = True) -> None:
        self.stage, self.slots, self.rng, self.restarts = stage, slots, random.Random(seed), restarts
        self.ends = 0

    def __call__(self) -> None:
        slot = self.rng.choice(self.slots)
        source: Node = self.stage.owner(slot)
        match self.rng.randrange(8):
            case 0 | 1 if slot not in source.migrating:
                self.stage.begin_move(slot, self.rng.choice([n for n in self.stage.nodes if n is not source]))
            case 2 if slot in source.migrating:
                self.stage.end_move(slot)
                self.ends += 1
            case 3 if self.restarts and self.rng.random() < 0.02:
                self.rng.choice(self.stage.nodes).restart()
            case _ if slot in source.migrating:
                here = source.in_slot(slot)
                for key in self.rng.sample(here, min(len(here), self.rng.choice([1, 3, len(here) // 2]))):
                    self.stage.move_key(key)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_hidden_by_slots_that_move(seed: int, stage: Stage) -> None:
    rng = random.Random(seed)
    tags = [f"{{t{n}}}" for n in range(6)]
    keys = stage.put(*(f"{tag}{n}" for tag in tags for n in range(rng.choice([1, 5, 60]))), *names(50))
    stage.meanwhile = chaos = Chaos(stage, [slot_of(tag.encode()) for tag in tags], seed)
    for count in (1, 5, 40, 1000):
        for words in ((), ("TYPE", "string"), ("MATCH", "{t1}*"), ("MATCH", "*1")):
            found = set(stage.scan_all("COUNT", count, *words))
            wanted = set(keys)
            if words[:1] == ("MATCH",):
                wanted = {k for k in keys if (k.startswith(b"{t1}") if words[1][0] == "{" else k.endswith(b"1"))}
            assert found == wanted, (count, words)
    assert chaos.ends > 10


@pytest.mark.parametrize("seed", range(6))
def test_nothing_of_a_large_slot_is_hidden_while_it_moves(
    seed: int, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of one kind and the other are gone through page by page here, with keys on both sides."""
    monkeypatch.setattr("proxy.serve.scan_page.KEYS_MOST", 20)
    monkeypatch.setattr("proxy.serve.scan_slot._COUNT_LEAST", {True: 10, False: 10})
    monkeypatch.setattr("proxy.serve.scan_page._LARGE_LEAST", 20)
    keys = stage.put(*names(300, "{tag}"), *names(20))
    chaos = Chaos(stage, [slot_of(b"tag")], seed, restarts=False)
    calls = 0

    def seldom() -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            chaos()

    stage.meanwhile = seldom
    for count in (10, 30, 100):
        assert set(stage.scan_all("COUNT", count)) == set(keys)
    assert chaos.ends > 0
