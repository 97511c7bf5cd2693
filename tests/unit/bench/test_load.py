from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.contestants import READY_KEYS, BenchError, Contestant, envoy_config
from bench.load import CASES, direct_keyspace, find_load_generator, key_slot, requests_for, run_generator

GET_16 = next(case for case in CASES if case.name == "get-p16")
HEAD = (
    '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"'
)


@pytest.fixture
def generator(tmp_path: Path):
    """Makes an executable that says its arguments and `output`, and ends with `status`."""

    def make(output: str, status: int = 0) -> str:
        path = tmp_path / "generator"
        path.write_text(
            f"#!{sys.executable}\nimport sys\n"
            f"open({str(tmp_path / 'arguments')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
            f"print({output!r})\nprint('Error from server: ERR no', file=sys.stderr)\nsys.exit({status})\n"
        )
        path.chmod(0o755)
        return str(path)

    return make


def proxy() -> Contestant:
    contestant = Contestant("proxy", 7000)
    contestant.process = object()  # type: ignore[assignment]  # anything in front of the cluster
    return contestant


def test_slots_are_the_clusters():
    # By CLUSTER KEYSLOT.
    assert [key_slot(key) for key in ("123456789", *READY_KEYS)] == [12739, 3300, 7365, 15495]


def test_ready_keys_live_on_different_shards():
    assert {key_slot(key) * 3 // 16384 for key in READY_KEYS} == {0, 1, 2}


@pytest.mark.parametrize(("rate", "requests"), [(100_000, 300_000), (100_001, 300_000), (1, 3_200)])
def test_requests_are_whole_pipelines_of_every_client(rate, requests):
    assert requests_for(rate, 3.0, GET_16, 50) == requests


def test_a_node_holds_as_many_keys_behind_a_proxy_as_directly():
    assert direct_keyspace(GET_16) == 33_333


def test_columns_are_read(generator, tmp_path):
    path = generator(f'Cluster has 3 master nodes:\n\n{HEAD}\n"GET","1000.50","0.1","0.2","0.3","0.4","0.5","0.6"')
    columns = run_generator(path, proxy(), GET_16, 800, 50)
    assert (columns["rps"], columns["p50_latency_ms"], columns["p99_latency_ms"]) == (1000.5, 0.3, 0.5)
    arguments = (tmp_path / "arguments").read_text()
    assert "-p 7000" in arguments
    assert "-c 50 -n 800 -P 16 -r 100000 -d 64 -t get" in arguments
    assert "--cluster" not in arguments


def test_the_cluster_itself_is_loaded_in_cluster_mode(generator, tmp_path):
    path = generator(f'{HEAD}\n"GET","1","1","1","1","1","1","1"')
    run_generator(path, Contestant("direct", 7000), GET_16, 800, 50, threads=2)
    arguments = (tmp_path / "arguments").read_text()
    assert "-r 33333" in arguments
    assert "--cluster --threads 2" in arguments


def test_an_mget_names_ten_random_keys(generator, tmp_path):
    path = generator(f'{HEAD}\n"MGET","1","1","1","1","1","1","1"')
    run_generator(path, proxy(), next(case for case in CASES if case.name == "mget10-p1"), 50, 50)
    assert (tmp_path / "arguments").read_text().endswith("MGET" + " key:__rand_int__" * 10)


@pytest.mark.parametrize(("output", "status"), [(f'{HEAD}\n"GET","1","1","1","1","1","1","1"', 1), (HEAD, 0), ("", 1)])
def test_a_failed_run_is_no_measurement(generator, output, status):
    with pytest.raises(BenchError, match=r"proxy, get-p16.*Error from server: ERR no"):
        run_generator(generator(output, status), proxy(), GET_16, 800, 50)


def test_a_missing_generator_is_said_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(BenchError, match="redis-benchmark is not on PATH: install redis-tools"):
        find_load_generator()


def test_envoy_flushes_at_once_and_reads_from_primaries():
    config = envoy_config(["127.0.0.1:7001", "127.0.0.1:7002"], 7000, 9000)
    proxy_filter = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert not {"buffer_flush_timeout", "max_buffer_size_before_flush"} & proxy_filter["settings"].keys()
    assert proxy_filter["settings"]["read_policy"] == "MASTER"
    endpoints = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ports = [one["endpoint"]["address"]["socket_address"]["port_value"] for one in endpoints]
    assert ports == [7001, 7002]
