"""One measurement: redis-benchmark against one endpoint, and what the processes involved spent meanwhile.

Called by bench.run (and bench.memory for its background load). The load generator is redis-benchmark: one thread
against a proxy unless told otherwise; with --cluster one thread per primary, which is redis-benchmark's own choice and
the most that the cluster allows.

Invariants:
- A measurement counts only if it was correct: the endpoint gives the right answers before and after, redis-benchmark
  ends with status 0 (it stops at the first error reply), every GET hits, and the same processes run before and after.
- Every key that the load can draw exists beforehand, with a value of the case's size.
"""

from __future__ import annotations

import csv
import resource
import shutil
import subprocess
import time
from binascii import crc_hqx
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import procfs
from bench.contestants import PRIMARIES, BenchError, Connection, Contestant, packed
from proxy.embedded import HOST, EmbeddedCluster

LOAD_GENERATOR = "redis-benchmark"
MGET_KEYS = 10
RUN_LIMIT_S = 180.0
CHECK_KEY = "bench:check:"
# A generator above this share of one core per thread may be what limits the throughput.
SATURATED_CORES = 0.95


@dataclass(frozen=True)
class Case:
    """One workload. `keyspace` is the number of keys behind a proxy; `command` is SET, GET or MGET."""

    name: str
    command: str
    pipeline: int
    value_bytes: int
    keyspace: int

    @property
    def crosses_slots(self) -> bool:
        """Whether a command needs several shards, which the cluster refuses without a proxy."""
        return self.command == "MGET"

    @property
    def keys_read(self) -> int:
        """Keys that one command reads."""
        return {"GET": 1, "MGET": MGET_KEYS}.get(self.command, 0)

    @property
    def first_requests(self) -> int:
        """Requests of the first, estimating run: some tenths of a second."""
        return 2_000 if self.value_bytes > 4096 else 20_000 * min(self.pipeline, 5)


CASES = (
    *(
        Case(f"{command.lower()}-p{depth}", command, depth, 64, 100_000)
        for depth in (1, 16, 100)
        for command in ("SET", "GET")
    ),
    *(Case(f"mget10-p{depth}", "MGET", depth, 64, 100_000) for depth in (1, 16)),
    *(Case(f"{command.lower()}-64k", command, 1, 65_536, 1_000) for command in ("SET", "GET")),
)


@dataclass(frozen=True)
class Measurement:
    """What one run showed; `_us` is CPU time per command, `_ms` latency, `_cores` CPU seconds per second.

    `other_cores` is what processes that are no part of the measurement used meanwhile: the noise of the machine.
    """

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    user_us: float
    system_us: float
    servers_us: float
    load_cores: float
    other_cores: float

    @property
    def cpu_us(self) -> float:
        """User and system time of the proxy per command."""
        return self.user_us + self.system_us


def find_load_generator() -> str:
    """Path of redis-benchmark; BenchError when there is none."""
    path = shutil.which(LOAD_GENERATOR)
    if path is None:
        raise BenchError(f"{LOAD_GENERATOR} is not on PATH: install redis-tools (Debian, Ubuntu) or redis (elsewhere).")
    return path


class Dataset:
    """The keys the load draws from, loaded once per value size.

    redis-benchmark names its keys `key:000000000042`, and in cluster mode `key:{TAG}:000000000042` with one tag per
    primary. Both families exist side by side, with the same number of keys on a node.
    """

    def __init__(self, cluster: EmbeddedCluster, generator: str) -> None:
        self._cluster = cluster
        self._generator = generator
        self._loaded: tuple[int, int] | None = None
        self._tagged: dict[int, str] = {}

    def load(self, case: Case) -> None:
        """Makes every key of the case exist with its value size; nothing to do when they do already."""
        if self._loaded == (case.value_bytes, case.keyspace):
            return
        for node in self._cluster.nodes:
            node.command("FLUSHALL")
        self._tagged = self._tagged or self._learn_tags()
        per_node = direct_keyspace(case)
        plain = {f"key:{n:012d}" for n in range(case.keyspace)}
        value = b"x" * case.value_bytes
        batch = max(1, min(1_000, (4 << 20) // case.value_bytes))
        slots: dict[int, list[str]] = {node.port: [] for node in self._cluster.nodes}
        owners = {slot: node.port for node in self._cluster.nodes for slot in self._cluster.slots_of(node)}
        for key in plain:
            slots[owners[key_slot(key)]].append(key)
        for node in self._cluster.nodes:
            slots[node.port] += [f"{self._tagged[node.port]}:{n:012d}" for n in range(per_node)]
            with Connection(node.port) as connection:
                for keys in _batches(slots[node.port], batch):
                    connection.socket.sendall(b"".join(packed("SET", key, value) for key in keys))
                    for _ in keys:
                        if connection.read() != b"OK":
                            raise BenchError(f"a node refused to store keys: {node.log[-300:]}")
        self._loaded = (case.value_bytes, case.keyspace)

    def check(self, contestant: Contestant, case: Case) -> None:
        """Writes, reads back and reads preloaded keys through the endpoint; BenchError on any other answer."""
        if contestant.direct:
            for node in self._cluster.nodes:
                tag = self._tagged[node.port]
                _expect(node.port, contestant, case, f"{tag}:{0:012d}", f"{tag}:check")
        else:
            for n in range(MGET_KEYS):
                _expect(contestant.port, contestant, case, f"key:{n:012d}", f"{CHECK_KEY}{n}")
        if case.crosses_slots and not contestant.direct:
            with Connection(contestant.port) as connection:
                values = connection.ask("MGET", *(f"key:{n:012d}" for n in range(MGET_KEYS)))
            sizes = [len(value or b"") for value in values] if isinstance(values, list) else []
            if sizes != [case.value_bytes] * MGET_KEYS:
                raise BenchError(f"{contestant.name} answers MGET wrongly in {case.name}: {values!r:.200}")

    def reads(self) -> tuple[int, int]:
        """Keys read so far on all nodes: found, and not found."""
        stats = [node.info("stats") for node in self._cluster.nodes]
        return sum(int(one["keyspace_hits"]) for one in stats), sum(int(one["keyspace_misses"]) for one in stats)

    def _learn_tags(self) -> dict[int, str]:
        """`key:{TAG}` of each node by port: read from keys that redis-benchmark writes, for its table is internal."""
        probe = Case("probe", "SET", 1, 3, 3)
        run_generator(self._generator, Contestant("direct", self._cluster.nodes[0].port), probe, 300, 9)
        found = {node.port: str(node.command("SCAN", 0)[1][0]).rpartition(":")[0] for node in self._cluster.nodes}
        for node in self._cluster.nodes:
            node.command("FLUSHALL")
        return found


def _batches(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _expect(port: int, contestant: Contestant, case: Case, preloaded: str, own: str) -> None:
    marker = f"{case.name}-{time.monotonic_ns()}".encode()
    with Connection(port) as connection:
        answers = (connection.ask("SET", own, marker), connection.ask("GET", own), connection.ask("GET", preloaded))
    if answers[:2] != (b"OK", marker) or not isinstance(answers[2], bytes) or len(answers[2]) != case.value_bytes:
        raise BenchError(f"{contestant.name} answers wrongly in {case.name}: SET, GET, GET gave {answers!r:.300}")


def key_slot(key: str) -> int:
    """Slot of a key without a hash tag: CRC16/XMODEM modulo 16384, which is what binascii calls crc_hqx."""
    return crc_hqx(key.encode(), 0) % 16384


def direct_keyspace(case: Case) -> int:
    """Keys per tag in cluster mode, so that a node holds as many as behind a proxy."""
    return max(1, case.keyspace // PRIMARIES)


def run_generator(
    generator: str, contestant: Contestant, case: Case, requests: int, clients: int, threads: int | None = None
) -> dict[str, float]:
    """Runs redis-benchmark once and returns the columns of its CSV; BenchError when it met any error.

    threads: of redis-benchmark; None leaves it to itself.
    redis-benchmark 7.0 ends with status 1 at the first error reply ("We now immediately exit on error to avoid false
    results"), so status 0 means that every reply was good.
    """
    keyspace = direct_keyspace(case) if contestant.direct else case.keyspace
    command = [generator, "-h", HOST, "-p", str(contestant.port), "--csv", "--precision", "3"]
    command += ["-c", str(clients), "-n", str(requests), "-P", str(case.pipeline), "-r", str(keyspace)]
    command += ["-d", str(case.value_bytes)]
    command += ["--cluster"] if contestant.direct else []
    command += ["--threads", str(threads)] if threads else []
    if case.command == "MGET":
        command += ["MGET", *["key:__rand_int__"] * MGET_KEYS]
    else:
        command += ["-t", case.command.lower()]
    where = f"{contestant.name}, {case.name}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{LOAD_GENERATOR} got stuck on {where}. {contestant.log_tail()}") from None
    if done.returncode != 0:
        said = f"{done.stderr} {contestant.log_tail()}".strip()
        raise BenchError(f"{LOAD_GENERATOR} failed on {where} (status {done.returncode}): {said}")
    rows = done.stdout[done.stdout.index('"test"') :].splitlines()
    columns = next(csv.DictReader(rows), None)
    if columns is None:
        raise BenchError(f"{LOAD_GENERATOR} printed no result for {where}: {done.stderr}")
    return {name: float(value) for name, value in columns.items() if name != "test"}


def measure(
    generator: str,
    contestant: Contestant,
    servers: Sequence[int],
    dataset: Dataset,
    case: Case,
    requests: int,
    clients: int,
    threads: int | None = None,
) -> Measurement:
    """Checks the endpoint, loads it with `requests` commands, checks again; counts what was spent during the load."""
    dataset.load(case)
    dataset.check(contestant, case)
    hits, misses = dataset.reads()
    if contestant.family() != contestant.pids:
        raise BenchError(f"{contestant.name} is not the process it was: {contestant.log_tail()}")
    started, busy = time.monotonic(), procfs.machine_busy_ns()
    own, server = procfs.cpu_time(contestant.family()), procfs.cpu_time(servers)
    load = resource.getrusage(resource.RUSAGE_CHILDREN)
    columns = run_generator(generator, contestant, case, requests, clients, threads)
    load_after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own, server = procfs.cpu_time(contestant.family()).since(own), procfs.cpu_time(servers).since(server)
    busy, elapsed_s = procfs.machine_busy_ns() - busy, time.monotonic() - started
    if contestant.family() != contestant.pids:
        raise BenchError(f"{contestant.name} lost or replaced a process under {case.name}: {contestant.log_tail()}")
    dataset.check(contestant, case)
    hits, misses = (after - before for after, before in zip(dataset.reads(), (hits, misses), strict=True))
    if case.keys_read and (misses or hits < requests * case.keys_read):
        expected = f"{requests * case.keys_read} reads were expected, {hits} found a key and {misses} did not"
        raise BenchError(f"{contestant.name}, {case.name}: {expected}")
    load_s = load_after.ru_utime - load.ru_utime + load_after.ru_stime - load.ru_stime
    ours_s = load_s + (own.total_ns + server.total_ns) / 1e9
    return Measurement(
        requests=requests,
        rate=columns["rps"],
        p50_ms=columns["p50_latency_ms"],
        p99_ms=columns["p99_latency_ms"],
        max_ms=columns["max_latency_ms"],
        user_us=own.user_ns / 1e3 / requests,
        system_us=own.system_ns / 1e3 / requests,
        servers_us=server.total_ns / 1e3 / requests,
        load_cores=load_s * columns["rps"] / requests,
        other_cores=max(0.0, (busy / 1e9 - ours_s) / elapsed_s),
    )


def requests_for(rate: float, seconds: float, case: Case, clients: int) -> int:
    """How many requests last about `seconds` at `rate`, in whole pipelines of every client."""
    step = case.pipeline * clients
    return max(step * 4, round(rate * seconds / step) * step)
