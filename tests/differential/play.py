"""Plays a sequence to one plain server and through the proxy, compares the replies, and makes a failing one small.

Called by: test_differential and run. Both sides are emptied before each sequence and each sequence has connections of
its own, so that it can be played again alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha1
from random import Random
from types import TracebackType

import redis

from proxy.embedded import HOST, EmbeddedCluster, EmbeddedNode
from tests.differential.differences import Verdict, name_of, verdict
from tests.differential.frames import parse
from tests.differential.grammar import SPLIT, Command, read_commands
from tests.differential.sequences import Sequence, Step
from tests.support.cluster import Standalone, slot_of
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import Closed, RawClient, array, bulk, encode

TIMEOUT_S = 5.0
TRIES = 150  # playings spent on making a sequence small
SEED_DATA = "SET s hello|SET n 12345|RPUSH l a b c|SADD t 1 2 3|ZADD z 1 a 2 b|HSET h f v g w|XADD x 1-1 f v"
NOT_SERVED = b"is not served by this proxy yet\r\n"


@dataclass
class Difference:
    """The first reply of a sequence that differs."""

    sequence: Sequence
    at: int
    plain: bytes
    through: bytes
    again: bool = True  # it came again when the sequence was played again

    @property
    def step(self) -> Step:
        return self.sequence.steps[self.at] if self.at < len(self.sequence.steps) else Step((b"(at the end)",))

    @property
    def kind(self) -> tuple[bytes, bytes, bytes]:
        """The same for differences that are likely of one cause."""
        return (b" ".join(self.step.words[:1]).upper(), _beginning(self.plain), _beginning(self.through))

    def __str__(self) -> str:
        steps = "\n".join(f"    {step}" for step in self.sequence.steps[: self.at + 1])
        note = "" if self.again else "\n  (not seen again when played again: a race?)"
        return (
            f"sequence {self.sequence.name}, differs in {self.step}{note}\n{steps}\n"
            f"  one server: {self.plain[:600]!r}\n  the proxy:  {self.through[:600]!r}"
        )


def _beginning(reply: bytes) -> bytes:
    return reply[:24] if reply.startswith(b"-") else reply[:1]


class Pair:
    """One plain server, and a proxy in front of a cluster of the same kind; reads: the proxy's setting of that name."""

    def __init__(self, server: Standalone, cluster: EmbeddedCluster, proxy: ProxyDaemon, reads: str) -> None:
        self._stack = ExitStack()
        self._server, self._proxy = server, proxy
        self._oracle = self._stack.enter_context(server.raw())
        self._nodes = [self._direct(node) for node in cluster.primaries()]
        self._replica_nodes = [self._direct(node) for node in cluster.replicas()]
        self._replicas = reads != "primary"
        self.commands: dict[str, Command] = read_commands(self._oracle)
        self._oracle.command("HELLO", 2)
        self._containers = {name.partition("|")[0] for name in self.commands if "|" in name}
        self.dumps = self._dumps()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def unserved(self) -> set[str]:
        """Names of the servers' commands for which the proxy says that it does not serve them yet.

        Their arguments are nonsense, as many as there must be: what is served refuses them, or does no harm.
        """
        found = set()
        for name, command in self.commands.items():
            with self._proxy.raw(TIMEOUT_S) as client:
                client.send(encode(*command.words, *[b"x"] * (abs(command.arity) - len(command.words))))
                if client.rest_or_frame().endswith(NOT_SERVED):
                    found.add(name)
        return found

    def first_difference(self, sequence: Sequence) -> Difference | None:
        self.empty()
        plain = _Playing(sequence, self._server.raw, None).replies()
        through = _Playing(sequence, self._proxy.raw, self._settle if self._replicas else None, self._reads).replies()
        return self._compare(sequence, plain, through)

    def smallest(self, found: Difference) -> Difference:
        """The same difference, of as few steps as a while of trying brings."""
        best = self.first_difference(found.sequence)
        if best is None or best.kind != found.kind:
            return replace(found, again=False)
        best = self._without_what_follows(best)
        tries = 0
        size = max(1, len(best.sequence.steps) // 2)
        while size and tries < TRIES:
            at = 0
            while at < len(best.sequence.steps) and tries < TRIES:
                steps = best.sequence.steps[:at] + best.sequence.steps[at + size :]
                tries += 1
                smaller = self.first_difference(replace(best.sequence, steps=steps)) if steps else None
                if smaller is not None and smaller.kind == found.kind:
                    best = self._without_what_follows(smaller)
                else:
                    at += size
            size //= 2
        steps = best.sequence.steps
        simple = tuple(replace(step, wait=True, raw=b"" if step.words else step.raw) for step in steps)
        simpler = self.first_difference(replace(best.sequence, steps=simple))
        return simpler if simpler is not None and simpler.kind == found.kind else best

    def empty(self) -> None:
        """No keys, scripts or functions on either side."""
        clean = [("FLUSHALL",), ("SCRIPT", "FLUSH"), ("FUNCTION", "FLUSH")]
        every = (
            self._oracle,
            *self._nodes,
            *self._replica_nodes,
        )  # a replica keeps its own scripts, and refuses the rest
        for client in every:
            client.send(b"".join(encode(*words) for words in clean))
        for client in every:
            client.frames(len(clean))
        with self._proxy.raw() as client:
            client.command("SCRIPT", "FLUSH")  # it remembers bodies
        if self._replicas:
            self._settle()

    # Comparison

    def _compare(self, sequence: Sequence, plain: list[bytes], through: list[bytes]) -> Difference | None:
        queues: dict[int, list[list[bytes]]] = {}
        watched: dict[int, list[list[bytes]]] = {}
        for at, (one, other) in enumerate(zip(plain, through, strict=True)):
            words = list(sequence.steps[at].words) if at < len(sequence.steps) else []
            name = name_of(words, self._containers)
            client = sequence.steps[at].client if at < len(sequence.steps) else 0
            queued = queues.get(client, [])
            if one == other == b"" and words and name not in SPLIT and self._crosses([words]):
                return None  # refused by a cluster, under CLIENT REPLY OFF
            if one.startswith(b"-NOSCRIPT ") and one != other and _tells(sequence.steps[at + 1 :], words[1]):
                return None  # repaired with a body that came behind it, in the same bytes
            match verdict(
                words,
                self._containers,
                one,
                other,
                partial(self._crosses, [words, *queued, *watched.get(client, [])]),
                queued,
            ):
                case Verdict.OVER:
                    return None
                case Verdict.DIFFERENT:
                    return Difference(sequence, at, one, other)
            if one == b"+QUEUED\r\n":
                queues.setdefault(client, []).append(words)
            elif name in ("exec", "discard", "reset"):
                queues.pop(client, None)
            if name == "watch" and one == b"+OK\r\n":
                watched.setdefault(client, []).append(words)
            elif name in ("exec", "discard", "unwatch", "reset"):
                watched.pop(client, None)
        return None

    def _crosses(self, commands: list[list[bytes]]) -> bool:
        """Whether the keys of a command, of those queued before it and of what is watched are in several slots."""
        slots = set()
        for words in commands:
            keys = parse(self._oracle.command("COMMAND", "GETKEYS", *words))
            # GETKEYS finds none in PFMERGE with a destination only; nodes do.
            slots |= {slot_of(key) for key in [item.text for item in keys.items]}
            if words[0].upper() == b"PFMERGE":
                slots.add(slot_of(words[1]))
        return len(slots) > 1

    def _without_what_follows(self, found: Difference) -> Difference:
        kept = found.sequence.steps[: found.at + 1]
        return replace(found, sequence=replace(found.sequence, steps=kept))

    # Servers

    def _direct(self, node: EmbeddedNode) -> RawClient:
        return self._stack.enter_context(RawClient((HOST, node.port)))

    def _settle(self) -> None:
        """Until the replicas have what the primaries have; WAIT is for what its own connection saw last."""
        for node in self._nodes:
            node.send(encode("PUBLISH", "settle", "") + encode("WAIT", 1, 5000))
        for node in self._nodes:
            _, replicas = node.frames(2)
            assert replicas == b":1\r\n", replicas

    def _reads(self, step: Step) -> bool:
        command = self.commands.get(name_of(list(step.words), self._containers))
        return command is not None and command.reads

    def _dumps(self) -> list[bytes]:
        self._oracle.command("FLUSHALL")
        payloads = [b"", b"broken"]
        for line in SEED_DATA.split("|"):
            words = line.split()
            self._oracle.command(*words)
            payloads.append(parse(self._oracle.command("DUMP", words[1])).text)
        return payloads


class _Playing:
    """One side's part in a sequence. settle: called where a reading command follows others, or others a reading one."""

    def __init__(
        self,
        sequence: Sequence,
        connect: Callable[[float], RawClient],
        settle: Callable[[], None] | None,
        reads: Callable[[Step], bool] = lambda step: False,
    ) -> None:
        self._steps = sequence.steps
        self._chance = Random(sequence.cuts)
        self._connect = connect
        self._settle = settle
        self._reads = reads
        self._clients: dict[int, RawClient | None] = {}

    def replies(self) -> list[bytes]:
        """Of each step; then what else came, of each client."""
        said: list[bytes] = []
        at = 0
        try:
            while at < len(self._steps):
                end = self._end_of_run(at)
                said += self._run(self._steps[at:end])
                at = end
            return said + [self._rest(client) for client in (0, 1)]
        finally:
            for connection in self._clients.values():
                if connection is not None:
                    connection.close()

    def _end_of_run(self, at: int) -> int:
        end = at + 1
        while end < len(self._steps):
            step, before = self._steps[end], self._steps[end - 1]
            turned = self._settle is not None and self._reads(step) != self._reads(before)
            if step.client != before.client or step.wait or turned:
                break
            end += 1
        return end

    def _run(self, steps: tuple[Step, ...]) -> list[bytes]:
        client = self._client(steps[0].client)
        if client is None:
            return [b"(closed)"] * len(steps)
        said = []
        with suppress(OSError, Closed):  # what a server said before it closed can be read
            client.exchange(self._pieces(b"".join(step.sent for step in steps)))
        for step in steps:
            if step.closes:
                said.append(self._until_closed(client))
                self._clients[step.client] = None
            else:
                said.append(self._frame(client) if step.replies else b"")
        if len(steps) == 1 and _scans(steps[0]):
            said = [self._all_pages(client, steps[0], said[0])]
        if self._settle is not None:
            self._settle()
        return said

    def _all_pages(self, client: RawClient, step: Step, first: bytes) -> bytes:
        """SCAN goes on to its end: the keys of all pages, sorted, as the one page of a server that has few."""
        keys: set[bytes] = set()
        page = first
        while page.startswith(b"*2\r\n"):
            cursor, found = parse(page).items
            keys |= {key.text for key in found.items}
            if cursor.text == b"0":
                return array(bulk(b"0"), array(*map(bulk, sorted(keys))))
            client.send(encode(step.words[0], cursor.text, *step.words[2:]))
            page = self._frame(client)
        return page

    def _frame(self, client: RawClient) -> bytes:
        try:
            return client.frame()
        except Closed as closed:
            return bytes(closed.args[0]) + b"(closed)"
        except TimeoutError:
            return b"(no reply)"
        except OSError as lost:
            return type(lost).__name__.encode()

    def _until_closed(self, client: RawClient) -> bytes:
        try:
            return client.rest()
        except TimeoutError:
            return b"(not closed)"
        finally:
            client.close()

    def _rest(self, number: int) -> bytes:
        """What came that no step accounts for, up to the reply of a last command that is answered in every state."""
        client = self._clients.get(number)
        if client is None:
            return b""
        nonce = b"end-of-sequence"
        rest = b""
        try:
            client.send(encode("RESET") + encode("ECHO", nonce))
            while nonce not in (frame := client.frame()):
                rest += frame
        except (Closed, OSError) as lost:
            return rest + type(lost).__name__.encode()
        return rest

    def _client(self, number: int) -> RawClient | None:
        if number not in self._clients:
            self._clients[number] = self._connect(TIMEOUT_S)
        return self._clients[number]

    def _pieces(self, data: bytes) -> list[bytes]:
        """Whole, in two to seven pieces, or in crumbs."""
        chance = self._chance
        match chance.randrange(5):
            case 0 | 1:
                return [data]
            case 2 if len(data) < 600:
                return [data[at : at + 1] for at in range(len(data))]
        points = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randint(1, 6)))
        return [data[a:b] for a, b in zip([0, *points], [*points, len(data)], strict=True)]


def _tells(steps: tuple[Step, ...], sha: bytes) -> bool:
    """Whether one of these brings the script of that name."""
    return any(sha1(word).hexdigest().encode() == sha.lower() for step in steps for word in step.words)


def _scans(step: Step) -> bool:
    return len(step.words) > 1 and step.words[0].upper() == b"SCAN" and step.words[1] == b"0" and step.replies == 1


class Fleet:
    """Everything a run needs of one kind of server, as a context manager."""

    def __init__(self, server: str, workers: int = 1, reads: str = "primary") -> None:
        self._stack = ExitStack()
        self._server, self._workers, self._reads = server, workers, reads

    def __enter__(self) -> Pair:
        with ExitStack() as stack:
            options = databases(self._server)
            replicas = int(self._reads != "primary")
            standalone = stack.enter_context(Standalone(self._server))
            cluster = stack.enter_context(
                EmbeddedCluster(self._server, replicas=replicas, node_timeout_ms=15000, options=options)
            )
            config = {"listeners": [{"reads": self._reads}]}
            proxy = stack.enter_context(ProxyDaemon(cluster.seeds[:1], config, workers=self._workers))
            pair = stack.enter_context(Pair(standalone, cluster, proxy, self._reads))
            self._stack = stack.pop_all()
            return pair

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, tb)


def databases(server: str) -> dict[str, str]:
    """Settings with which a cluster's node has as many databases as one server, where it can."""
    with Standalone(server) as probe, redis.Redis(port=probe.port) as client:
        return {"cluster-databases": "16"} if client.config_get("cluster-databases") else {}
