"""Each rule of /livez and /readyz by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.admin.probes import SILENT_S, liveness, readiness
from proxy.admin.snapshot import OwnValues, TopologyValues
from tests.unit.admin.snapshots import own, topology

PATIENCE_S = 5.0
UNKNOWN = topology(known=False, fresh=False, slots=0, epoch=0, success_s=None, error="10.0.0.1:7000: refused")


def having(known: TopologyValues | None = None, **changes: Any) -> OwnValues:
    return {**own(known=known), **changes}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("known", "partial", "reasons"),
    [
        (own(), False, []),
        (own(), True, []),
        # An error of the last refresh is no reason while the topology is fresh.
        (having(topology(error="10.0.0.1:7000: timeout")), False, []),
        (having(workers=1), False, []),
        (having(draining=True), False, ["the proxy is draining"]),
        (having(draining=True, listening=[]), False, ["the proxy is draining"]),
        (having(listening=[]), False, ["the proxy does not listen"]),
        (having(workers=0), False, ["no worker is running"]),
        (having(UNKNOWN), False, ["the topology is not known: 10.0.0.1:7000: refused"]),
        (having(UNKNOWN), True, ["the topology is not known: 10.0.0.1:7000: refused"]),
        (having(topology(known=False, fresh=False, slots=0)), False, ["the topology is not known"]),
        (having(topology(fresh=False)), False, ["the topology has not been confirmed lately"]),
        (having(topology(fresh=False, error="why")), True, ["the topology has not been confirmed lately: why"]),
        (having(topology(slots=16383)), False, ["only 16383 of 16384 slots have a primary"]),
        (having(topology(slots=16383)), True, []),
        (having(topology(slots=1)), True, []),
        (having(topology(slots=0)), True, ["no slot has a primary"]),
        (having(topology(slots=0)), False, ["no slot has a primary"]),
        # A failover is waited for, with the commands that are held; what lasts longer is told.
        (having(owners_down={"a:1": 0.0, "b:1": PATIENCE_S}), False, []),
        (having(owners_down={"a:1": 0.0, "b:1": 5.1}), False, ["1 of 2 primaries cannot be reached: b:1"]),
        (having(owners_down={"a:1": 0.0, "b:1": 3600.0}), True, []),
        (having(owners_down={"a:1": 0.5, "b:1": 0.001}), False, ["no primary can be reached"]),
        (having(owners_down={"a:1": 0.5, "b:1": 0.001}), True, ["no primary can be reached"]),
        (having(owners_down={}), False, []),
        (
            having(owners_down={f"{n}:1": 9.0 for n in range(5)} | {"e:1": 0.0}),
            False,
            ["5 of 6 primaries cannot be reached: 0:1, 1:1, 2:1"],
        ),
        # The nodes refuse every command, wherever it goes; in a failover they do so for a moment.
        (having(topology(down_s=PATIENCE_S)), False, []),
        (having(topology(down_s=5.1)), False, ["the nodes say that the cluster is down"]),
        (having(topology(down_s=5.1)), True, ["the nodes say that the cluster is down"]),
        # Those that hang keep their connections.
        (having(suspected={"a:1": 9.0, "b:1": 3.1}), False, ["no primary answers"]),
        (having(suspected={"a:1": 9.0, "b:1": 3.1}), True, ["no primary answers"]),
        (having(suspected={"a:1": 3.0, "b:1": 3.1}), True, []),
        (
            having(suspected={"a:1": 4.0, "b:1": 0.5}, owners_down={"a:1": 0.0, "b:1": 0.1}),
            True,
            ["no primary answers"],
        ),
        (having(suspected={"a:1": PATIENCE_S, "b:1": 0.0}), False, []),
        (having(suspected={"a:1": 5.1, "b:1": 0.0}), False, ["1 of 2 primaries do not answer: a:1"]),
        (having(suspected={"a:1": 5.1, "b:1": 0.0}), True, []),
        (
            having(suspected={"a:1": 6.0, "b:1": 6.0, "c:1": 0.0}, owners_down={"a:1": 6.0, "b:1": 0.0, "c:1": 0.0}),
            False,
            ["1 of 3 primaries cannot be reached: a:1", "1 of 3 primaries do not answer: b:1"],
        ),
        # Work on a node that is paused is not to be seen.
        (having(suspected={"a:1": 60.0, "b:1": 0.0}, paused=["a:1"]), False, []),
        (having(suspected={"a:1": 60.0}, paused=["a:1"]), False, []),
        (
            having(topology(known=False, fresh=False, slots=0), listening=[], workers=0),
            False,
            ["the proxy does not listen", "no worker is running", "the topology is not known"],
        ),
        (
            having(topology(fresh=False, slots=5), draining=True),
            False,
            [
                "the proxy is draining",
                "the topology has not been confirmed lately",
                "only 5 of 16384 slots have a primary",
            ],
        ),
    ],
)
def test_readiness(known: OwnValues, partial: bool, reasons: list[str]) -> None:
    ready, details = readiness(known, partial, PATIENCE_S)
    assert details["reasons"] == reasons
    assert ready is (not reasons)


def test_what_verbose_shows_of_readiness() -> None:
    late = having(
        topology(error="late", down_s=1.23456),
        workers=1,
        owners_down={"a:1": 0.0, "b:1": 7.12345},
        suspected={"a:1": 0.0, "b:1": 7.65432},
        paused=["a:1"],
    )
    _, details = readiness(late, True, PATIENCE_S)
    assert json.loads(json.dumps(details)) == {
        "reasons": [],
        "draining": False,
        "listening": ["127.0.0.1:7617"],
        "workers": {
            "configured": 2,
            "running": 1,
            "without_primary": [1],
            "missed": {"0": ["10.0.0.1:7000", "10.0.0.3:7000"]},
        },
        "topology": {
            "known": True,
            "fresh": True,
            "slots_covered": 16384,
            "partial_is_enough": True,
            "epoch": 12,
            "last_success": 1700000000.5,
            "last_error": "late",
            "down": 1.235,
        },
        "unreachable": {"b:1": 7.123},
        "suspected": {"b:1": 7.654},
        "paused": ["a:1"],
    }


def test_liveness() -> None:
    assert liveness({}) == (True, {"reasons": [], "workers": {}})
    assert liveness({0: 0.1, 1: SILENT_S})[0]
    live, details = liveness({1: 7.25, 0: 0.0012345, 2: 5.01})
    assert not live
    assert json.loads(json.dumps(details)) == {
        "reasons": ["worker 1 has not answered for 7.2 s", "worker 2 has not answered for 5.0 s"],
        "workers": {"0": {"silent_s": 0.001}, "1": {"silent_s": 7.25}, "2": {"silent_s": 5.01}},
    }
