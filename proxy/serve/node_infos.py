"""The nodes' INFO documents, asked for once for all clients of a worker.

Why: INFO is polled, by many, and each answer needs every node's. Called by serve.info; made by worker.worker, with the
means to ask.

Invariants:
- A round, all nodes asked once, begins at least GAP_S after the one before, however many clients ask; who asks while
  one is under way waits for the next, for what he has just written is not in that one.
  (What a client has sent behind its INFO, without waiting, may be in the answer already.)
- A round ends when all have answered, and at the latest after PATIENCE_S. Who has not answered by then is missing. A
  node is not asked again, and not waited for, before its last question is answered or given up (GIVE_UP_S).
- What a node tells is bounded (MOST bytes); an answer that is no INFO document is none.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from proxy.resp import encode
from proxy.resp.decode import decode
from proxy.resp.errors import ProtocolFault
from proxy.serve import info_merge
from proxy.serve.info_merge import Document

GAP_S: Final = 0.02
FRESH_S: Final = 0.1
PATIENCE_S: Final = 1.0
GIVE_UP_S: Final = 10.0
MOST: Final = 4 << 20


class NodeLike(Hashable, Protocol):
    """proxy.forward.node.Node as it is known here."""

    @property
    def label(self) -> str: ...  # "host:port"
    @property
    def replica(self) -> bool: ...


class AskNode(Protocol):
    """Asks a node, as proxy.forward.question.ask_node does."""

    def __call__(
        self,
        node: Any,
        frame: bytes,
        *,
        proto: int,
        timeout_ns: int,
        most: int,
        done: Callable[[bytes | None], object],
    ) -> None: ...


class NodeInfo(NamedTuple):
    """What one node told; document None: it did not answer."""

    label: str
    replica: bool
    document: Document | None


class Infos:
    """What a round brought. whole: with the sections that plain INFO leaves out. kept: for what is made of it."""

    def __init__(self, nodes: list[NodeInfo], whole: bool, at_s: float) -> None:
        self.nodes, self.whole, self.at_s = nodes, whole, at_s
        self.kept: dict[Hashable, Any] = {}
        self.served: dict[int, int] = {}  # CLIENT ID -> how many commands it had sent by then
        self.primaries = [node.document for node in nodes if not node.replica and node.document is not None]
        self.missing = sum(node.document is None for node in nodes)
        self.primaries_missing = sum(node.document is None and not node.replica for node in nodes)


class _Round:
    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.waiting: list[Callable[[Infos], object]] = []
        self.nodes: list[NodeLike] = []
        self.told: dict[NodeLike, bytes | None] = {}


class NodeInfos:
    """See the module. nodes(): all of the topology. call_later, now_s: an event loop's.

    raised(what, error): one of those who waited raised.
    """

    def __init__(
        self,
        nodes: Callable[[], Iterable[NodeLike]],
        ask: AskNode,
        call_later: Callable[[float, Callable[[], object]], Any],
        now_s: Callable[[], float],
        raised: Callable[[str, BaseException], object],
    ) -> None:
        self._nodes, self._ask, self._call_later, self._now_s, self._raised = nodes, ask, call_later, now_s, raised
        self._latest: Infos | None = None
        self._waiting: list[Callable[[Infos], object]] = []
        self._whole, self._proto = False, 2
        self._round: _Round | None = None
        self._asked: set[NodeLike] = set()
        self._begun_s = float("-inf")
        self._timer: Any = None

    def fresh(self, whole: bool) -> Infos | None:
        """What was asked in the last FRESH_S, for who does not mind."""
        known = self._latest
        if known is None or self._now_s() - known.at_s > FRESH_S or (whole and not known.whole):
            return None
        return known

    def wait(self, whole: bool, proto: int, done: Callable[[Infos], object]) -> None:
        """Calls done with what the nodes told after this moment; proto: which of their connections to use."""
        self._waiting.append(done)
        self._whole |= whole
        self._proto = proto
        if self._round is None and self._timer is None:
            if (pause_s := self._begun_s + GAP_S - self._now_s()) > 0:
                self._timer = self._call_later(pause_s, self._begin)
            else:
                self._begin()

    def stop(self) -> None:
        """No timer is left; who waits is not told any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._round, self._waiting = None, None, []

    def _begin(self) -> None:
        self._begun_s = self._now_s()
        going = self._round = _Round(self._whole)
        going.waiting, self._waiting, self._whole = self._waiting, [], False
        going.nodes = list(self._nodes())
        self._timer = self._call_later(PATIENCE_S, self._end)
        frame = encode.encode_command("INFO", "everything") if going.whole else encode.encode_command("INFO")
        for node in going.nodes:
            if node in self._asked:
                going.told[node] = None
                continue
            self._asked.add(node)
            self._ask(
                node,
                frame,
                proto=self._proto,
                timeout_ns=int(GIVE_UP_S * 1e9),
                most=MOST,
                done=partial(self._answered, going, node),
            )
        self._end_if_all_told(going)

    def _answered(self, going: _Round, node: NodeLike, reply: bytes | None) -> None:
        self._asked.discard(node)
        going.told[node] = reply
        self._end_if_all_told(going)

    def _end_if_all_told(self, going: _Round) -> None:
        if going is self._round and len(going.told) == len(going.nodes):
            self._end()

    def _end(self) -> None:
        """Of the present round, whoever is missing."""
        going, self._round = self._round, None
        self._timer.cancel()
        self._timer = None
        if going is None:
            return
        nodes = [NodeInfo(node.label, node.replica, _document(going.told.get(node))) for node in going.nodes]
        self._latest = infos = Infos(nodes, going.whole, self._begun_s)
        if self._waiting:
            self._timer = self._call_later(max(0.0, self._begun_s + GAP_S - self._now_s()), self._begin)
        for done in going.waiting:
            try:
                done(infos)
            except Exception as error:
                self._raised("INFO", error)


def _document(reply: bytes | None) -> Document | None:
    if reply is None:
        return None
    try:
        text = decode(reply)
    except ProtocolFault:
        return None
    return info_merge.parse(text.decode("utf-8", "replace")) if isinstance(text, bytes) else None
