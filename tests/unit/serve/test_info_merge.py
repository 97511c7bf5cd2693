"""Primaries' INFO documents made one: each rule, and lines that are not what they should be."""

from __future__ import annotations

import pytest

from proxy.serve import info_merge
from proxy.serve.info_merge import (
    commandstats,
    errorstats,
    human,
    keys_of,
    keyspace,
    latencystats,
    merged,
    modules,
    parse,
)


def both(section: str, one: str, two: str) -> list[info_merge.Document]:
    return [parse(f"# {section}\r\n{text.replace(' ', chr(13) + chr(10))}\r\n") for text in (one, two)]


@pytest.mark.parametrize(
    ("one", "two", "made"),
    [
        ("used_memory:100", "used_memory:23", {"used_memory": "123"}),
        ("keyspace_hits:-1", "keyspace_hits:3", {"keyspace_hits": "2"}),
        ("a:1", "b:2", {"a": "1", "b": "2"}),
        ("used_memory:1024 used_memory_human:1K", "used_memory:1024 used_memory_human:1K",
         {"used_memory": "2048", "used_memory_human": "2.00K"}),
        ("x_human:1K", "x_human:1K", {}),
        ("loading:0", "loading:1", {"loading": "1"}),
        ("rdb_bgsave_in_progress:1", "rdb_bgsave_in_progress:1", {"rdb_bgsave_in_progress": "1"}),
        ("rdb_last_save_time:10", "rdb_last_save_time:20", {"rdb_last_save_time": "20"}),
        ("rdb_last_bgsave_time_sec:-1", "rdb_last_bgsave_time_sec:3", {"rdb_last_bgsave_time_sec": "3"}),
        ("current_fork_perc:0.00", "current_fork_perc:12.50", {"current_fork_perc": "12.50"}),
        ("rdb_last_bgsave_status:ok", "rdb_last_bgsave_status:err", {"rdb_last_bgsave_status": "err"}),
        ("rdb_last_bgsave_status:ok", "rdb_last_bgsave_status:ok", {"rdb_last_bgsave_status": "ok"}),
        ("maxmemory:0", "maxmemory:100", {"maxmemory": "0"}),
        ("maxmemory:50", "maxmemory:100", {"maxmemory": "150"}),
        ("aof_enabled:1", "aof_enabled:0", {"aof_enabled": "0"}),
        ("maxmemory_policy:noeviction", "maxmemory_policy:allkeys-lru", {"maxmemory_policy": "noeviction"}),
        ("instantaneous_input_kbps:0.5", "instantaneous_input_kbps:0.25", {"instantaneous_input_kbps": "0.75"}),
        ("used_cpu_sys:0.100001", "used_cpu_sys:1.5", {"used_cpu_sys": "1.600001"}),
        ("mystery:1.5", "mystery:2.5", {"mystery": "2.5"}),
        ("used_memory:10 used_memory_rss:30 mem_fragmentation_ratio:3.00",
         "used_memory:30 used_memory_rss:30 mem_fragmentation_ratio:1.00",
         {"used_memory": "40", "used_memory_rss": "60", "mem_fragmentation_ratio": "1.50"}),
        ("mem_fragmentation_ratio:nan", "mem_fragmentation_ratio:1.00", {"mem_fragmentation_ratio": "0.00"}),
        ("used_memory:90 used_memory_peak:100 used_memory_peak_perc:90%", "used_memory:0 used_memory_peak:20",
         {"used_memory": "90", "used_memory_peak": "120", "used_memory_peak_perc": "75.00%"}),
        ("used_memory:50 used_memory_startup:10 used_memory_dataset:20 used_memory_dataset_perc:50%", "",
         {"used_memory": "50", "used_memory_startup": "10", "used_memory_dataset": "20",
          "used_memory_dataset_perc": "50.00%"}),
        ("a:1_000", "a:1", {"a": "1_000"}),
        ("a:", "a:1", {"a": ""}),
        ("a:" + "9" * 40, "a:1", {"a": "9" * 40}),
        ("no colon", ":", {"": ""}),
    ],
)  # fmt: skip
def test_figures(one: str, two: str, made: dict[str, str]) -> None:
    assert merged(both("Memory", one, two), "memory") == made


def test_without_any() -> None:
    assert merged([], "memory") == {}
    assert (keyspace([]), commandstats([]), errorstats([]), latencystats([]), modules([])) == ({}, {}, {}, {}, [])


def test_keyspace() -> None:
    documents = both(
        "Keyspace",
        "db0:keys=10,expires=2,avg_ttl=100,new=1 db10:keys=1,expires=0,avg_ttl=0",
        "db0:keys=5,expires=6,avg_ttl=500,new=2 db2:keys=3,expires=0,avg_ttl=0 dbx:keys=1 db3:nonsense db4:keys=x",
    )
    assert keyspace(documents) == {
        "db0": "keys=15,expires=8,avg_ttl=400,new=3",
        "db2": "keys=3,expires=0,avg_ttl=0",
        "db10": "keys=1,expires=0,avg_ttl=0",
    }
    assert list(keyspace(documents)) == ["db0", "db2", "db10"]
    assert [keys_of(document) for document in documents] == [11, 9]


def test_commandstats() -> None:
    documents = both(
        "Commandstats",
        "cmdstat_get:calls=3,usec=10,usec_per_call=3.33,rejected_calls=1,failed_calls=0 cmdstat_x:calls=0,usec=0",
        "cmdstat_get:calls=1,usec=10,usec_per_call=10.00,rejected_calls=0,failed_calls=2 other:calls=1 cmdstat_y:what",
    )
    assert commandstats(documents) == {
        "cmdstat_get": "calls=4,usec=20,usec_per_call=5.00,rejected_calls=1,failed_calls=2",
        "cmdstat_x": "calls=0,usec=0,usec_per_call=0.00",
        "cmdstat_y": "calls=0,usec=0,usec_per_call=0.00",
    }


def test_errorstats() -> None:
    documents = both("Errorstats", "errorstat_ERR:count=2 errorstat_MOVED:count=9", "errorstat_ERR:count=1 x:count=1")
    assert errorstats(documents) == {"errorstat_ERR": "count=3"}


def test_latencystats() -> None:
    name = "latency_percentiles_usec_get"
    documents = both("Latencystats", f"{name}:p50=1.003,p99=9.5,bad=x", f"{name}:p50=2.007,p99=3.5,p99.9=4.0")
    assert latencystats(documents) == {name: "p50=2.007,p99=9.500,p99.9=4.000"}


def test_modules_are_those_of_the_first() -> None:
    documents = both("Modules", "module:name=a,ver=1 module:name=b,ver=2", "module:name=c,ver=1")
    assert modules(documents) == ["module:name=a,ver=1", "module:name=b,ver=2"]


def test_parse() -> None:
    text = "junk:1\r\n# Server\r\na:1\r\n\r\n# Memory \r\nb:x:y\r\nc\r\n# Server\r\nd:2\r\n"
    document = parse(text)
    assert document == {"server": ["a:1", "d:2"], "memory": ["b:x:y"]}
    assert info_merge.fields(document, "memory") == {"b": "x:y"}
    assert parse("") == {}


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.00K"),
        (1388472, "1.32M"),
        (25276502016, "23.54G"),
        (1024**4, "1.00T"),
        (3 * 1024**5, "3.00P"),
        (1024**6, "1024.00P"),
    ],
)
def test_human(size: int, text: str) -> None:
    assert human(size) == text
