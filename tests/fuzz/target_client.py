"""Invariants of the whole data path, one client or several in front of nodes that come, go and change their roles:
* a client that speaks RESP gets exactly one reply per command, in order, and the one that command deserves, whatever
  is redirected (MOVED, ASK, TRYAGAIN ..., to known and unknown nodes), however both streams are cut, and though the
  topology, connections and settings change meanwhile; one that is parted with gets exactly the replies to what was
  carried out;
* what a script says is its client's reply, or followed once; nothing else comes of it, and nobody unknown is dialled;
* nothing is sent to a node that no client sent, and no write again that was carried out;
* pushes for a client come whole, in order, and between replies;
* on any bytes from a client the process never crashes, reads nothing outside its buffers, and loses no request.
"""

from __future__ import annotations

import random
import time
from typing import Any

from hypothesis import strategies as st

from proxy.forward.clients import close_lingering, drain, follow_reads
from proxy.forward.ports import PushPort
from proxy.forward.router import READ_POLICIES
from proxy.resp.readers import ReplyReader
from tests.fuzz.actors import (
    PUSH_OF_NODE,
    AskingResponder,
    Company,
    D,
    FakeNode,
    Ledger,
    Mood,
    Speaker,
    encoded,
)
from tests.fuzz.cases import alternate, pieces
from tests.fuzz.target_commands import CORPUS
from tests.support.datapath import A, B, C, End, Stage

KEYS = [b"", b"a", b"b", b"c", b"k" * 300, b"{t}1", b"{t}2", *(b"key:%d" % n for n in range(12))]
ASKS = [b"any", b"lease", b"node", b"multi", b"two", b"nodes", b"primaries", b"nonsense", b"raising"]
XREADS: list[list[bytes]] = [
    b"XREADGROUP GROUP g BLOCK STREAMS key:1 >".split(),
    b"XREADGROUP GROUP g c COUNT 1 STREAMS key:1 >".split(),
    b"XREADGROUP GROUP block streams COUNT 7 NOACK STREAMS key:1 >".split(),
]
key = st.sampled_from(KEYS)
keys = st.lists(key, min_size=1, max_size=12)
command = st.one_of(
    key.map(lambda k: [b"GET", k]),
    key.map(lambda k: [b"SET", k, b"x" * 40]),
    key.map(lambda k: [b"SET", k, b"x" * 30000]),
    key.map(lambda k: [b"INCR", k]),
    keys.map(lambda ks: [b"MGET", *ks]),
    keys.map(lambda ks: [b"DEL", *ks]),
    keys.map(lambda ks: [b"MSET", *(word for k in ks for word in (k, b"v"))]),
    st.tuples(st.sampled_from([b"EVAL", b"EVALSHA", b"FCALL"]), key).map(lambda two: [two[0], b"body", b"1", two[1]]),
    st.tuples(st.sampled_from(ASKS), st.integers(0, 1 << 30)).map(lambda two: [b"ECHO", b"ask:%s:%d" % two]),
    st.sampled_from(XREADS),
    st.just([b"PING"]),
    st.just([b"ECHO", b"e" * 9]),
    st.sampled_from([[b"HELLO", b"3"], [b"HELLO", b"2"], [b"RESET"], [b"TIME"], [b"CLIENT", b"INFO"]]),
    st.just([b"get"]),
)
POLICIES = [policy for policy in READ_POLICIES if policy != "replica"]  # there may be none to read from
plays = st.lists(st.lists(command, max_size=12), min_size=1, max_size=3)


def topology(chance: random.Random) -> list[Any]:
    """All slots covered, by any of four nodes; the others are replicas, or not there."""
    nodes = [A, B, C, D]
    chance.shuffle(nodes)
    primaries = [nodes.pop() for _ in range(chance.randint(1, 4))]
    borders = sorted(chance.sample(range(1, 16384), len(primaries) - 1))
    ranges = zip([0, *borders], [*(b - 1 for b in borders), 16383], strict=True)
    shards: list[Any] = [(node, [], [own]) for node, own in zip(primaries, ranges, strict=True)]
    for node in nodes:
        if chance.random() < 0.7:
            chance.choice(shards)[1].append(node)
    return shards


def publish(stage: Stage, chance: random.Random, ledger: Ledger) -> None:
    shards = topology(chance)
    for primary, replicas, _ in shards:
        ledger.known |= {primary, *replicas}
    stage.publish(shards)
    for node in stage.router.nodes.values():
        node.usable = chance.random() < 0.8
    if chance.random() < 0.7:
        stage.parking.wake_all()


def disturb(stage: Stage, chance: random.Random, ledger: Ledger, locks: bool = True) -> None:
    """What control does while clients are served. locks: may ask for a password, for who connects or says RESET."""
    match chance.randrange(6):
        case 0:
            publish(stage, chance, ledger)
        case 1:
            stage.router.connections = chance.choice([1, 2, 3])
            stage.router.renew()
        case 2:
            stage.settings.update(
                max_pending=chance.choice([1, 3, 1024]),
                max_pending_bytes=chance.choice([1, 16 << 20]),
                soft_output=chance.choice([1000, 1 << 20]),
                password=locks and chance.random() < 0.5,
                timeout_ns=chance.choice([20_000_000_000, 30_000_000_000]),
            )
        case 3:
            stage.settings.update(reads=chance.choice(POLICIES))
            follow_reads(stage.path, stage.settings, chance.choice(POLICIES))
        case 4:
            stage.router.sweep()
        case 5:
            stage.router.warm(chance.choice([2, 3]))
            stage.path.limit(*chance.choice([(0, 0), (1 << 20, 1 << 30)]))
    close_lingering(stage.path, chance.choice([0.0, 1.0]))


def listening(stage: Stage, chance: random.Random) -> list[bytes]:
    """Has pushes of nodes dropped, or given to a port: what comes there."""
    heard: list[bytes] = []
    if chance.random() < 0.5:
        stage.router.pushes = PushPort(lambda backend, frame: heard.append(frame))
    return heard


def play(conversations: list[list[list[bytes]]], chance: random.Random) -> None:
    """Clients that speak RESP, and nodes that behave but for what Mood has without lies."""
    mood = Mood(
        redirect=chance.choice([0.0, 0.05, 0.3]),
        unknown=chance.choice([0.0, 0.0, 0.3]),
        forged=chance.choice([0.0, 0.5]),
        pushes=chance.choice([0.0, 0.0, 0.1]),
        breaks=chance.choice([0.0, 0.0, 0.1]),
        small=chance.random() < 0.2,
    )
    disturbed = chance.choice([0.02, 0.02, 0.1])
    parting = chance.choice([0.0, 0.005, 0.05])
    pushing = chance.choice([0.0, 0.0, 0.1])
    lines = chance.choice([0.0, 0.0, 0.5])
    locks = not any([b"RESET"] in one for one in conversations)
    ledger = Ledger()
    stage = Stage(
        timeout_s=20.0,
        max_redirections=100,
        connections=chance.choice([1, 2]),
        max_pending=chance.choice([1, 3, 1024]),
        soft_output=chance.choice([1000, 1 << 20]),
        max_window=chance.choice([100, 1000, 16 << 20]),
    )
    stage.path.responder = AskingResponder(stage, ledger)
    heard = listening(stage, chance)
    clients = []
    for one in conversations:
        words = [ledger.unique(c) for c in one]
        stream = pieces(chance, b"".join(encoded(c, chance, lines) for c in words))
        clients.append(Speaker(stage, words, stream, ledger))
    company = Company(stage, chance, mood, ledger)
    give_up = time.monotonic() + 30
    while any(client.waits for client in clients):
        assert time.monotonic() < give_up, "a reply is missing"
        for client in clients:
            client.speak()
            if chance.random() < pushing:
                client.push(chance.random() < 0.5)
        stage.turn(1)
        if chance.random() < disturbed:
            disturb(stage, chance, ledger, locks)
        if chance.random() < parting:
            drain(chance.choice(clients).inside)
        company.act()
        for client in clients:
            client.listen()
    stage.turn(2)
    for client in clients:
        client.listen()
        client.judge(mood, fair=True, calm=mood.calm)
        if mood.calm:
            carried_out = client.inside.total_commands if client.inside.draining else len(client.commands)
            assert len(client.replies) == carried_out
            assert client.pushed == client.pushes or client.end.closed
    assert all(frame.startswith(PUSH_OF_NODE) for frame in heard)
    stage.close()


def garble(data: bytes, chance: random.Random) -> None:
    """Any bytes from a client."""
    stage = Stage(max_bulk=chance.choice([100, 1 << 20]), max_query=chance.choice([500, 1 << 20]))
    client = stage.client()
    fakes: dict[End, FakeNode] = {}
    stream = pieces(chance, data)[::-1]
    said = b""
    parting = chance.choice([0.0, 0.02])
    give_up = time.monotonic() + 30
    while stream:
        assert time.monotonic() < give_up, "the client is not read any more"
        piece = stream.pop()
        taken = client.offer(piece)
        if taken < len(piece):
            stream.append(piece[taken:])
        stage.turn(1)
        if chance.random() < parting:
            drain(stage.accepted)
        for address, ends in stage.nodes.items():
            for end in ends:
                fakes.setdefault(end, FakeNode(address, end, chance, Mood(), Ledger()))
        for end in list(fakes):
            end.offer(b"+OK\r\n" * len(fakes[end].reader.feed(end.get())))
        said += client.get()
    stage.turn(2)
    for reply, _, _ in ReplyReader().feed(said + client.get()):
        assert reply
    client.close()
    stage.turn(2)
    assert not stage.path.clients
    stage.close()


def check(case: Any, chance: random.Random) -> None:
    if isinstance(case, bytes):
        garble(case, chance)
    else:
        play(case, chance)


def run(seed: int, deadline: float) -> int:
    return alternate(seed, deadline, CORPUS, plays, check)
