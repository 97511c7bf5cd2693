"""Invariants of the whole data path, one client or several in front of three nodes that come and go:
* a client that speaks RESP gets exactly one reply per command, in order, and the one that command deserves, whatever
  is redirected (MOVED, ASK, TRYAGAIN ...), however both streams are cut, and though connections to the nodes are
  renewed and settings changed meanwhile; one that is parted with gets exactly the replies to what was carried out;
* nodes that lose their connection or break RESP cost errors, never a wrong reply, an extra one, or a missing one;
* on any bytes from a client the process never crashes, reads nothing outside its buffers, and loses no request.
"""

from __future__ import annotations

import random
import time
from typing import Any

from hypothesis import strategies as st

from proxy.cluster.slot import slot_of
from proxy.cluster.topology import Address
from proxy.forward.clients import close_lingering, drain, follow_reads
from proxy.forward.router import READ_POLICIES
from proxy.resp.encode import array, bulk, encode_command, integer
from proxy.resp.readers import CommandReader, ReplyReader
from tests.fuzz.cases import alternate, pieces
from tests.fuzz.target_commands import CORPUS
from tests.support.datapath import THIRDS, A, B, C, End, Stage

KEYS = [b"", b"a", b"b", b"c", b"k" * 300, b"{t}1", b"{t}2", *(b"key:%d" % n for n in range(12))]
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
    st.just([b"PING"]),
    st.just([b"ECHO", b"e" * 9]),
    st.just([b"get"]),
)
POLICIES = [policy for policy in READ_POLICIES if policy != "replica"]  # there are none to read from
plays = st.lists(st.lists(command, max_size=12), min_size=1, max_size=3)


def value(name: bytes) -> bytes:
    """What the nodes hold under a key: nothing, a little, or more than is passed on in one piece."""
    return bulk(b"v" * (20000 if len(name) == 1 else 10) + name)


def deserved(words: list[bytes]) -> bytes:
    """The one right reply."""
    match words[0]:
        case b"GET" if len(words) == 2:
            return value(words[1])
        case b"SET" | b"MSET":
            return b"+OK\r\n"
        case b"INCR":
            return integer(slot_of(words[1]))
        case b"MGET":
            return array([value(k) for k in words[1:]])
        case b"DEL":
            return integer(len(words) - 1)
        case b"PING":
            return b"+PONG\r\n"
        case b"ECHO":
            return bulk(words[1])
    return b"-ERR wrong number of arguments for 'get' command\r\n"


class FakeNode:
    """The far end of one backend connection. mood: chances of a redirection, and of breaking the connection."""

    def __init__(self, address: Address, end: End, chance: random.Random, redirect: float, breaks: float) -> None:
        self.address = address
        self.end = end
        self.chance = chance
        self.redirect = redirect
        self.breaks = breaks
        self.reader = CommandReader()
        self.asking = False
        self.unsent = b""

    def act(self) -> None:
        """Answers what has come, in pieces."""
        for _, words in self.reader.feed(self.end.get()):
            self.unsent += self.reply(words)
        if self.unsent and self.chance.random() < self.breaks:
            cut = self.chance.randrange(len(self.unsent) + 1)
            # Garbage is only known for garbage where a reply should begin.
            garbage = b"" if cut < len(self.unsent) else self.chance.choice([b"", b"!!\r\n", b"$-7\r\n", b"\0"])
            self.end.offer(self.unsent[:cut] + garbage)
            self.end.close()
            self.breaks = -1
            return
        size = self.chance.choice([1, 7, 100, 9000, 1 << 20])
        self.unsent = self.unsent[self.end.offer(self.unsent[:size]) :]

    def reply(self, words: list[bytes]) -> bytes:
        if words[0] == b"ASKING":
            self.asking = True
            return b"+OK\r\n"
        asked, self.asking = self.asking, False
        if not asked and self.chance.random() < self.redirect:
            other = self.chance.choice([A, B, C])
            slot = slot_of(words[1])
            return self.chance.choice(
                [
                    b"-MOVED %d %s\r\n" % (slot, str(other).encode()),
                    b"-ASK %d %s\r\n" % (slot, str(other).encode()),
                    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
                    b"-LOADING Redis is loading the dataset in memory\r\n",
                    b"-CLUSTERDOWN The cluster is down\r\n",
                ]
            )
        return deserved(words)


def disturb(stage: Stage, chance: random.Random) -> None:
    """What control does while clients are served."""
    match chance.randrange(4):
        case 0:
            stage.router.publish(THIRDS)
        case 1:
            stage.router.connections = chance.choice([1, 2, 3])
            stage.router.renew()
        case 2:
            stage.settings.update(
                max_pending=chance.choice([1, 3, 1024]),
                max_pending_bytes=chance.choice([1, 16 << 20]),
                soft_output=chance.choice([1000, 1 << 20]),
                password=chance.random() < 0.5,
                timeout_ns=chance.choice([5_000_000_000, 9_000_000_000]),
            )
        case 3:
            stage.settings.update(reads=chance.choice(POLICIES))
            follow_reads(stage.path, stage.settings, chance.choice(POLICIES))
    close_lingering(stage.path, chance.choice([0.0, 1.0]))


def play(conversations: list[list[list[bytes]]], chance: random.Random) -> None:
    """Clients that speak RESP."""
    redirect = chance.choice([0.0, 0.05, 0.3])
    breaks = chance.choice([0.0, 0.0, 0.1])
    disturbed = chance.choice([0.02, 0.02, 0.1])
    parting = chance.choice([0.0, 0.005, 0.05])
    stage = Stage(
        max_redirections=100,
        connections=chance.choice([1, 2]),
        max_pending=chance.choice([1, 3, 1024]),
        soft_output=chance.choice([1000, 1 << 20]),
    )
    clients, inside = [], []
    for _ in conversations:
        clients.append(stage.client())
        inside.append(stage.accepted)
    streams = [pieces(chance, b"".join(encode_command(*c) for c in one))[::-1] for one in conversations]
    got = [b"" for _ in conversations]
    fakes: dict[End, FakeNode] = {}
    counts = [len(one) for one in conversations]
    readers = [ReplyReader() for _ in conversations]
    replies: list[list[bytes]] = [[] for _ in conversations]
    give_up = time.monotonic() + 30
    while any(len(r) < n and not c.closed for r, n, c in zip(replies, counts, clients, strict=True)):
        assert time.monotonic() < give_up, "a reply is missing"
        for n, client in enumerate(clients):
            for _ in range(20 if len(streams[n]) > 500 else 1):
                if streams[n]:
                    piece = streams[n].pop()
                    taken = client.offer(piece)
                    if taken < len(piece):
                        streams[n].append(piece[taken:])
        stage.turn(1)
        if chance.random() < disturbed:
            disturb(stage, chance)
        if chance.random() < parting:
            drain(chance.choice(inside))
        for address, ends in stage.nodes.items():
            for end in list(ends):
                fake = fakes.get(end)
                if fake is None:
                    fake = fakes[end] = FakeNode(address, end, chance, redirect, breaks)
                if fake.breaks >= 0:
                    fake.act()
                if end.closed:
                    ends.remove(end)  # or every renewal would make the next turns slower
        for n, client in enumerate(clients):
            data = client.get()
            got[n] += data
            replies[n] += [frame for frame, _, _ in readers[n].feed(data)]
    for n, one in enumerate(conversations):
        if not breaks:
            carried_out = inside[n].total_commands if inside[n].draining else len(one)
            assert got[n] == b"".join(map(deserved, one[:carried_out]))
            assert len(replies[n]) == carried_out
            continue
        for said, words in zip(replies[n], one, strict=False):
            right = deserved(words)
            assert said == right or said.startswith(b"-ERR connection to the node was lost"), (words, said)
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
                fakes.setdefault(end, FakeNode(address, end, chance, 0, 0))
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
