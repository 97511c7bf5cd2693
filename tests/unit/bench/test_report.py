from __future__ import annotations

import json

from bench.memory import MemoryRow
from bench.report import Run, as_json, as_markdown
from tests.unit.bench.measurements import measurement

FACTS = {
    "date": "2026-01-01",
    "machine": {"cpu": "some CPU"},
    "versions": {"envoy": "1.40.0"},
    "settings": {"clients": "50"},
}


def run(results=None, memory=()):
    return Run(**FACTS, results=results or {}, memory=memory)


def test_the_table_has_median_lowest_and_highest_of_the_rounds():
    results = {"get-p1": {"proxy": [measurement(rate=rate, user_us=1.5, system_us=8) for rate in (3000, 1000, 2000)]}}
    (row,) = [line for line in as_markdown(run(results)).splitlines() if line.startswith("| get-p1 | proxy ")]
    assert "| 2,000 (1,000-3,000) |" in row
    assert "| 9.50 | 1.50 + 8.00 |" in row


def test_the_cluster_itself_has_no_proxy_cpu():
    (row,) = [
        line for line in as_markdown(run({"get-p1": {"direct": [measurement()]}})).splitlines() if "| direct |" in line
    ]
    assert "| - | - |" in row


def test_a_saturated_generator_is_marked_except_for_the_threaded_one():
    sides = {name: [measurement(load_cores=0.97)] for name in ("proxy", "direct")}
    text = as_markdown(run({"get-p100": sides}))
    assert text.count("0.97\\*") == 1
    assert text.count("| 0.97 |") == 1


def test_a_busy_machine_is_said():
    assert "not idle" not in as_markdown(run({"get-p1": {"proxy": [measurement(other_cores=0.1)]}}))
    assert "up to 0.80 cores" in as_markdown(run({"get-p1": {"proxy": [measurement(other_cores=0.8)]}}))


def test_a_target_is_passed_or_failed():
    sides = {"proxy": [measurement(rate=2300, user_us=1, system_us=0)], "envoy": [measurement(user_us=3, system_us=0)]}
    text = as_markdown(run({"get-p16": sides}))
    assert "| get-p16 | throughput at least 2.2x envoy | 2.30x | pass |" in text
    assert "| get-p16 | CPU per command at most 0.28x envoy | 0.33x | **FAIL** |" in text
    assert [target["kept"] for target in json.loads(as_json(run({"get-p16": sides})))["targets"]] == [True, False]


def test_nothing_is_shown_that_was_not_measured():
    text = as_markdown(run(memory=[MemoryRow("proxy", "slow reader", "peak +1.0 MB", {"peak": 1.0})]))
    assert "## Memory" in text
    assert "slow reader" in text
    assert "## Measured" not in text
    assert "## Targets" not in text


def test_json_keeps_every_round_and_fact():
    results = {"get-p1": {"proxy": [measurement(rate=1), measurement(rate=2)]}}
    document = json.loads(as_json(run(results)))
    assert [one["rate"] for one in document["cases"]["get-p1"]["proxy"]] == [1, 2]
    assert document["cases"]["get-p1"]["proxy"][0]["cpu_us"] == 2
    assert document["machine"] == FACTS["machine"]
    assert document["versions"] == FACTS["versions"]
