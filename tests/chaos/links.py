"""The bench's side of the faulty network (tests.chaos.link): starts it, gives it rules, takes them back."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from types import TracebackType
from typing import Any

from proxy.embedded import free_port
from tests.chaos.link import HOST, SOURCE_PREFIX
from tests.chaos.programs import started, tell

__all__ = ["HOST", "SOURCE_PREFIX", "Links"]


class Links:
    """A running network, as a context manager. Orders have taken effect when the method returns."""

    def __init__(self) -> None:
        self._ports: dict[tuple[str, str], int] = {}
        self._rules: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Links:
        self._process = started("tests.chaos.link")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def open(self, node: str, channel: str, target: int) -> int:
        """The port of the link in front of the node's port `target`; a link that is there leads to it from now on."""
        key = (node, channel)
        for _ in range(20):
            port = self._ports.get(key) or free_port()
            if "error" not in self._order(op="open", node=node, channel=channel, port=port, target=target):
                self._ports[key] = port
                return port
        raise AssertionError("no port for a link")

    def gone(self, node: str) -> None:
        """The node has ended: its ports refuse, as a dead process's do, until it is opened again."""
        self._order(op="gone", node=node)

    def port(self, node: str, channel: str = "client") -> int:
        return self._ports[node, channel]

    def set(self, mode: str, **rule: Any) -> dict[str, Any]:
        """Adds a rule (see tests.chaos.link): source, node, channel, direction, and the mode's values; for unset()."""
        added = {"mode": mode, **rule}
        self._rules.append(added)
        self._order(op="rules", rules=self._rules)
        return added

    def unset(self, *rules: dict[str, Any]) -> None:
        """Takes rules back."""
        self._rules = [rule for rule in self._rules if not any(rule is gone for gone in rules)]
        self._order(op="rules", rules=self._rules)

    def heal(self) -> None:
        """Everything passes."""
        self._rules = []
        self._order(op="rules", rules=[])

    def isolate(self, node: str) -> list[dict[str, Any]]:
        """Cuts a node off from the other nodes, not from the proxy: its bus, theirs, and replication both ways."""
        cut = [self.set("drop", node=node, channel="bus"), self.set("drop", source=node)]
        # Whoever replicates from it connects to its client port from an address of its own.
        others = [other for other, channel in self._ports if channel == "client" and other != node]
        return cut + [self.set("drop", source=other, node=node, channel="client") for other in others]

    def close(self, how: str = "reset", **chosen: str) -> None:
        """Ends the connections there are, by reset or close; new ones are not concerned."""
        self._order(op="close", how=how, **chosen)

    def count(self, **chosen: str) -> int:
        """Connections that pass."""
        return int(self._order(op="count", **chosen)["connections"])

    def cuts(self) -> int:
        """Connections that the mode `cut` has ended."""
        return int(self._order(op="count")["cuts"])

    def _order(self, **order: Any) -> dict[str, Any]:
        with self._lock:
            assert self._process is not None
            assert self._process.stdout is not None
            tell(self._process, order)
            line = self._process.stdout.readline()
        if not line:
            raise AssertionError("the network has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
