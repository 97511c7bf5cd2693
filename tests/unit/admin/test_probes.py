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
    late = having(topology(error="late"), workers=1, owners_down={"a:1": 0.0, "b:1": 7.12345})
    _, details = readiness(late, True, PATIENCE_S)
    assert json.loads(json.dumps(details)) == {
        "reasons": [],
        "draining": False,
        "listening": ["127.0.0.1:7617"],
        "workers": {"configured": 2, "running": 1},
        "topology": {
            "known": True,
            "fresh": True,
            "slots_covered": 16384,
            "partial_is_enough": True,
            "epoch": 12,
            "last_success": 1700000000.5,
            "last_error": "late",
        },
        "unreachable": {"b:1": 7.123},
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
