"""What monitoring and management tools send when they start, each command with an answer they can use.

The dialogues are taken from their sources:
- redis_exporter: https://github.com/oliver006/redis_exporter, exporter/exporter.go (scrapeRedisHost), slowlog.go,
  latency.go, clients.go, modules.go
- Datadog's redisdb check: https://github.com/DataDog/integrations-core,
  redisdb/datadog_checks/redisdb/redisdb.py (_check_db, _check_slowlog, _check_command_stats)
- RedisInsight: https://github.com/RedisInsight/RedisInsight,
  redisinsight/api/src/modules/database/providers/database-info.provider.ts, modules/redis/utils/sentinel.util.ts
- Spring Boot: https://github.com/spring-projects/spring-boot, actuate/redis/RedisHealthIndicator.java
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.resp.decode import ReplyError, decode
from tests.support.cluster import Standalone
from tests.support.proxyd import ProxyDaemon

REDIS_EXPORTER = """
PING
CLIENT SETNAME redis_exporter
CONFIG GET *
INFO ALL
INFO
LATENCY LATEST
LATENCY HISTOGRAM
SLOWLOG LEN
SLOWLOG GET 1
CLIENT LIST
SENTINEL MASTERS
MODULE LIST
"""
DATADOG = """
INFO
CONFIG GET maxclients
CONFIG GET slowlog-max-len
SLOWLOG GET 128
INFO keyspace
INFO commandstats
CLIENT LIST
TYPE datadog:key
LLEN datadog:list
"""
REDISINSIGHT = """
CLIENT SETNAME redisinsight-common-0001
INFO
INFO server
CLUSTER INFO
SENTINEL MASTERS
MODULE LIST
COMMAND INFO FT.SEARCH JSON.GET TS.ADD BF.ADD GRAPH.QUERY
FT._LIST
CONFIG GET databases
CLIENT LIST
DBSIZE
ACL WHOAMI
ACL GETUSER default
MEMORY USAGE redisinsight:key
TYPE redisinsight:key
TTL redisinsight:key
SLOWLOG GET 10
CONFIG GET slowlog*
"""
SPRING_BOOT = """
INFO server
INFO
PING
"""
# Fields of INFO they cannot do without.
NEEDED = """
redis_version os process_id run_id tcp_port uptime_in_seconds role connected_slaves master_repl_offset
connected_clients maxclients rejected_connections total_connections_received total_commands_processed
instantaneous_ops_per_sec keyspace_hits keyspace_misses evicted_keys expired_keys used_memory used_memory_rss
used_memory_peak used_memory_lua used_memory_startup used_memory_overhead maxmemory mem_fragmentation_ratio
number_of_cached_scripts used_cpu_sys used_cpu_user used_cpu_sys_children used_cpu_user_children
rdb_changes_since_last_save rdb_last_save_time rdb_last_bgsave_status aof_enabled loading latest_fork_usec
pubsub_channels pubsub_patterns total_net_input_bytes total_net_output_bytes cmdstat_set db0
"""
DIALOGUES = {
    "redis_exporter": REDIS_EXPORTER,
    "datadog": DATADOG,
    "redisinsight": REDISINSIGHT,
    "spring boot": SPRING_BOOT,
}
# Served with the rest of the fan-out; until then the proxy says so.
LATER = ("SLOWLOG", "LATENCY", "DBSIZE", "CLIENT LIST")


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("tool", DIALOGUES)
def test_each_command_has_a_sane_answer(proxy: ProxyDaemon, standalone: Standalone, tool: str, proto: int) -> None:
    """An error only where a plain server gives the same; else a reply of the same type."""
    with proxy.raw() as client, standalone.raw() as alone:
        for one in (client, alone):
            one.command("HELLO", proto)
            one.command("SET", "redisinsight:key", "v")
        for line in DIALOGUES[tool].strip().splitlines():
            through, direct = (one.command(*line.split()) for one in (client, alone))
            if b"not served by this proxy yet" in through:
                assert line.startswith(LATER), line
            elif line == "CLUSTER INFO":
                assert b"cluster_state:ok" in through
            elif isinstance(decode(direct), ReplyError):
                assert through == direct, line
            else:
                assert through[:1] == direct[:1], (line, through[:200])


def info_of(client: Any, *sections: str) -> dict[str, str]:
    text = decode(client.command("INFO", *sections)).decode()
    return {name: value for name, _, value in (line.partition(":") for line in text.split("\r\n") if ":" in line)}


def test_what_they_read_in_info(proxy: ProxyDaemon) -> None:
    """The fields each of them cannot do without, and none that would send it to the cluster's nodes."""
    with proxy.raw() as client:
        client.command("SET", "k", "v")
        found = info_of(client, "ALL")
        assert "\r\n# Sentinel" not in decode(client.command("INFO")).decode()
    assert set(NEEDED.split()) - set(found) == set()
    assert (found["redis_mode"], found["cluster_enabled"], found["role"]) == ("standalone", "0", "master")
    assert found["db0"].startswith("keys=1,expires=0,avg_ttl=0")


def test_an_operator_may_refuse_what_they_ask(proxy: ProxyDaemon) -> None:
    """Tools fall back on an error, not on a closed connection."""
    with proxy.raw() as client:
        for line in ("DEBUG SLEEP 10", "DEBUG JMAP", "SHUTDOWN NOSAVE", "ACL SETUSER x", "MODULE LOAD /x", "BGSAVE"):
            words = line.split()
            name = words[0].lower() if words[0] in ("DEBUG", "SHUTDOWN", "BGSAVE") else "|".join(words[:2]).lower()
            expected = b"-ERR command '%b' is not allowed through this proxy\r\n" % name.encode()
            assert client.command(*words) == expected
        assert client.command("PING") == b"+PONG\r\n"
