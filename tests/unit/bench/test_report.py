from __future__ import annotations

import json

from bench.churn import ChurnRow, ProcessFigures
from bench.memory import MemoryRow
from bench.report import Run, as_json, as_markdown
from bench.startup import Start, StartupRow
from tests.unit.bench.measurements import measurement

FACTS = {
    "date": "2026-01-01",
    "machine": {"cpu": "some CPU"},
    "versions": {"envoy": "1.40.0"},
    "settings": {"clients": "50"},
}


MB = 1 << 20
CHURN = ChurnRow(
    endpoint="proxy",
    workers="2",
    wanted_rate=5000.0,
    rate=4321.0,
    answered=129_630,
    failures={"not answered": 3},
    p50_ms=0.5,
    p99_ms=12.34,
    max_ms=40.0,
    cpu_us=95.5,
    cpu_us_by_role={"supervisor": 60.0, "worker 0": 35.5},
    client_cores=0.3,
    other_cores=0.05,
    peak_descriptors=77,
    before={"supervisor": ProcessFigures(20, 1, 50 * MB), "worker 0": ProcessFigures(30, 2, 40 * MB)},
    after={"supervisor": ProcessFigures(21, 1, 52 * MB), "worker 1": ProcessFigures(31, 2, 41 * MB)},
)
STARTUP = StartupRow(
    "proxy",
    "2",
    [
        Start(ready_s, 0.6, {"supervisor": (50 * MB, 30 * MB), "worker 0": (40 * MB, 10 * MB)})
        for ready_s in (0.3, 0.9, 0.4)
    ],
)


def run(results=None, **more):
    return Run(**FACTS, results=results or {}, **more)


def test_the_number_of_workers_is_in_every_row():
    results = {"get-p1": {"proxy": [measurement()], "envoy": [measurement()], "direct": [measurement()]}}
    memory = [MemoryRow("proxy", "slow reader", "peak")]
    document = run(results, memory=memory, workers={"proxy": "2", "envoy": "2 threads", "direct": "-"})
    text = as_markdown(document)
    for start in ("| get-p1 | proxy | 2 |", "| get-p1 | envoy | 2 threads |", "| get-p1 | direct | - |"):
        assert start in text
    assert "| proxy | 2 | slow reader |" in text
    assert json.loads(as_json(document))["workers"]["envoy"] == "2 threads"


def test_a_threaded_generator_is_saturated_later():
    results = {"get-p1": {"proxy": [measurement(load_cores=1.2)]}}
    assert "1.20\\*" in as_markdown(run(results))
    assert "1.20\\*" not in as_markdown(run(results, load_threads=2))


def test_churn_says_what_was_reached_and_what_is_left():
    text = as_markdown(run(churn=[CHURN]))
    (row,) = [line for line in text.splitlines() if line.startswith("| proxy | 2 ")]
    assert "| 129,630 | 3 not answered | 4,321 of 5,000 | 0.50 | 12.3 | 40.0 | 95.5 |" in row
    assert "| supervisor 60.0, worker 0 35.5 | 77 |" in row
    assert "| proxy | supervisor | 20 -> 21 | 50.0 -> 52.0 | 1 -> 1 |" in text
    assert "| proxy | worker 0 | 30 -> - | 40.0 -> - | 2 -> - |" in text
    assert "| proxy | worker 1 | - -> 31 | - -> 41.0 | - -> 2 |" in text
    assert json.loads(as_json(run(churn=[CHURN])))["churn"][0]["after"]["worker 1"]["descriptors"] == 31


def test_a_start_has_its_time_and_its_memory():
    text = as_markdown(run(startup=[STARTUP]))
    assert "| proxy | 2 | 3 | 0.400 | 0.300 | 0.900 | 0.600 |" in text
    assert "| proxy | worker 0 | 40.0 | 10.0 |" in text
    assert "| proxy | all | - | 40.0 |" in text
    assert [one["ready_s"] for one in json.loads(as_json(run(startup=[STARTUP])))["startup"][0]["starts"]] == [
        0.3,
        0.9,
        0.4,
    ]


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
    assert "## Start" not in text
    assert "## Clients" not in text
    assert "## Targets" not in text


def test_json_keeps_every_round_and_fact():
    results = {"get-p1": {"proxy": [measurement(rate=1), measurement(rate=2)]}}
    document = json.loads(as_json(run(results)))
    assert [one["rate"] for one in document["cases"]["get-p1"]["proxy"]] == [1, 2]
    assert document["cases"]["get-p1"]["proxy"][0]["cpu_us"] == 2
    assert document["machine"] == FACTS["machine"]
    assert document["versions"] == FACTS["versions"]
