"""Scripts behind the proxy: called by their SHA1 wherever they were seen, on nodes that lack them, until a flush."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import slot_of
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode

COUNT = "return redis.call('incrby', KEYS[1], ARGV[1])"
KEYS = ("a", "b", "c")  # one of each third of the slots
CLIENTS = 4  # they go to the worker with the fewest: each of two workers has some


def sha_of(body: str) -> str:
    return hashlib.sha1(body.encode()).hexdigest()


def error(client: redis.Redis, *words: Any) -> str:
    with pytest.raises(redis.ResponseError) as caught:
        client.execute_command(*words)
    return str(caught.value)


@pytest.fixture
def clients(proxy: ProxyDaemon) -> Iterator[list[redis.Redis]]:
    """Of both workers; no script is known anywhere."""
    made = [proxy.client() for _ in range(CLIENTS)]
    for client in made:
        client.ping()
    made[0].script_flush()
    yield made
    for client in made:
        client.close()


def flush_nodes(cluster: EmbeddedCluster) -> None:
    """Behind the proxy's back."""
    for node in cluster.primaries():
        node.command("SCRIPT", "FLUSH")


def test_loaded_through_one_worker_called_through_another(cluster: EmbeddedCluster, clients: list[redis.Redis]) -> None:
    assert clients[0].script_load(COUNT) == sha_of(COUNT)
    for node in cluster.primaries():
        assert node.command("SCRIPT", "EXISTS", sha_of(COUNT)) == [1]
    flush_nodes(cluster)
    for client in reversed(clients):
        for key in KEYS:
            client.evalsha(sha_of(COUNT), 1, key, 1)
    assert [clients[0].get(key) for key in KEYS] == [str(CLIENTS)] * 3


def test_run_once_through_one_worker(clients: list[redis.Redis]) -> None:
    """EVAL has taught one node; the others learn it when it is called there, through whichever worker."""
    clients[0].eval(COUNT, 1, KEYS[0], 1)
    for client in clients:
        for key in KEYS:
            client.execute_command("EVALSHA", sha_of(COUNT).upper(), 1, key, 1)
    assert [clients[0].get(key) for key in KEYS] == ["5", "4", "4"]


def test_nobody_knows_it_after_a_flush(cluster: EmbeddedCluster, clients: list[redis.Redis]) -> None:
    """At once, for clients of all workers, and for what is pipelined behind."""
    for round_ in range(20):
        body = f"{COUNT} -- {round_}"
        for client in clients:
            client.eval(body, 1, KEYS[round_ % 3], 1)
        assert clients[round_ % CLIENTS].script_flush("SYNC" if round_ % 2 else "ASYNC")
        for client in reversed(clients):
            assert "No matching script" in error(client, "EVALSHA", sha_of(body), 1, KEYS[round_ % 3], 1)
    pipe = clients[0].pipeline(transaction=False)
    pipe.eval(COUNT, 1, "a", 1)
    pipe.script_flush()
    pipe.evalsha(sha_of(COUNT), 1, "a", 1)
    pipe.get("a")
    said = pipe.execute(raise_on_error=False)
    assert [type(one) for one in said] == [int, bool, redis.exceptions.NoScriptError, str]


def test_as_the_server_says(clients: list[redis.Redis], standalone: Any) -> None:
    """What is wrong with SCRIPT LOAD, FLUSH and the calls is said in the server's words."""
    with redis.Redis("127.0.0.1", standalone.port, decode_responses=True) as server:
        for words in (
            ("SCRIPT", "FLUSH", "BAD"),
            ("SCRIPT", "FLUSH", "SYNC", "MORE"),
            ("SCRIPT", "LOAD"),
            ("SCRIPT", "LOAD", "return (("),
            ("SCRIPT", "NOSUCH"),
            ("EVALSHA", "0" * 40, "0"),
            ("EVALSHA", "short", "0"),
            ("EVALSHA", sha_of(COUNT), "-1"),
            ("EVALSHA", sha_of(COUNT), "x"),
            ("EVALSHA", sha_of(COUNT)),
            ("EVAL", "return ((", "0"),
            ("EVAL", "return 1", "5"),
            ("EVAL_RO", "return redis.call('set', KEYS[1], 1)", "1", "a"),
            ("FCALL", "nosuch", "0"),
        ):
            assert error(clients[0], *words) == error(server, *words)


def test_what_does_not_compile_is_not_known(clients: list[redis.Redis]) -> None:
    bad = "return (("
    error(clients[0], "EVAL", bad, 1, "a")
    assert "No matching script" in error(clients[0], "EVALSHA", sha_of(bad), 1, "b")


def test_many_at_once_after_a_node_has_forgotten(
    cluster: EmbeddedCluster, proxy: ProxyDaemon, clients: list[redis.Redis]
) -> None:
    """Every call counts once, again and again, with pipelines."""
    clients[0].script_load(COUNT)
    owner = cluster.owner_of(slot_of("a"))
    raws: list[RawClient] = [proxy.raw() for _ in range(100)]
    try:
        call = b"".join(encode("EVALSHA", sha_of(COUNT), "1", "a", "1") for _ in range(5))
        expected = 0
        for _ in range(10):
            owner.command("SCRIPT", "FLUSH")
            for raw in raws:
                raw.send(call)
            for raw in raws:
                for _ in range(5):
                    assert raw.frame().startswith(b":")
            expected += 500
            assert clients[0].get("a") == str(expected)
    finally:
        for raw in raws:
            raw.close()


def test_counted_once_while_nodes_forget(
    cluster: EmbeddedCluster, proxy: ProxyDaemon, clients: list[redis.Redis]
) -> None:
    clients[0].script_load(COUNT)
    done, failures = [0] * CLIENTS, []
    end = threading.Event()

    def run(place: int) -> None:
        with proxy.client() as client:
            while not end.is_set():
                try:
                    client.evalsha(sha_of(COUNT), 1, KEYS[place % 3], 1)
                    done[place] += 1
                except Exception as fault:
                    failures.append(fault)
                    return

    threads = [threading.Thread(target=run, args=(place,)) for place in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        flush_nodes(cluster)
        end.wait(0.03)
    end.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(done) == sum(int(clients[0].get(key) or 0) for key in KEYS)


def test_a_script_without_keys_stays_with_one_node(cluster: EmbeddedCluster, clients: list[redis.Redis]) -> None:
    body = "return redis.call('time') and 'here'"
    for client in clients:
        assert client.eval(body, 0) == "here"
        assert client.evalsha(sha_of(body), 0) == "here"
    known = [node.command("SCRIPT", "EXISTS", sha_of(body)) for node in cluster.primaries()]
    assert sorted(known) == [[0], [0], [1]]


def test_redis_py(clients: list[redis.Redis]) -> None:
    script = clients[0].register_script(COUNT)
    assert script(keys=["a"], args=[2]) == 2
    assert script(keys=["b"], args=[3], client=clients[1]) == 3
    pipe = clients[2].pipeline(transaction=False)
    for key in KEYS * 10:
        pipe.evalsha(script.sha, 1, key, 1)
    assert pipe.execute()[-3:] == [12, 13, 10]


def test_a_large_script(cluster: EmbeddedCluster, clients: list[redis.Redis]) -> None:
    body = "return #ARGV --" + "x" * 900_000
    assert clients[0].script_load(body) == sha_of(body)
    flush_nodes(cluster)
    for client in clients:
        assert client.evalsha(sha_of(body), 1, "a", 1, 2) == 2


def test_memory_is_bounded(cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> None:
    """What was used least recently is forgotten, and what is run again is known again."""
    proxy = start_proxy(cluster.seeds[:1], {"commands": {"script_memory": "100kb"}}, workers=2)
    bodies = [f"return {n} --" + "x" * 10_000 for n in range(50)]
    with proxy.client() as client:
        for body in bodies:
            client.eval(body, 1, "a")
        flush_nodes(cluster)
        assert "No matching script" in error(client, "EVALSHA", sha_of(bodies[0]), 1, "a")
        assert client.evalsha(sha_of(bodies[-1]), 1, "a") == 49
        wait_for(lambda: _known_again(client, bodies[0]), 20, "the script told again")


def _known_again(client: redis.Redis, body: str) -> bool:
    client.eval(body, 1, "a")
    try:
        return client.evalsha(sha_of(body), 1, "b") == 0
    except redis.exceptions.NoScriptError:
        return False


# -- nodes that come and go ---------------------------------------------------------------------------------------


def test_a_promoted_node_and_a_new_worker(server: str, start_proxy: Callable[..., ProxyDaemon]) -> None:
    """A replica knows no scripts of its primary's; nor does a worker that replaces another one."""
    with EmbeddedCluster(server) as cluster:
        proxy = start_proxy(cluster.seeds[:1])
        with proxy.client() as client:
            assert client.eval(COUNT, 1, "a", 1) == 1
        killed = proxy.worker_pids()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda: len(proxy.worker_pids()) == 2 and not set(killed) & set(proxy.worker_pids()), 20, "new workers"
        )
        old = cluster.owner_of(slot_of("a"))
        replica = cluster.replicas_of(old)[0]
        cluster.failover(replica)
        with proxy.client() as client:
            assert client.evalsha(sha_of(COUNT), 1, "a", 1) == 2
