"""The synchronous client: every kind of command an application uses, checked by value, with keys on every shard."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from checks import HOST, PORT, SUBJECT, NotTried, equal, remark, restart
from stages import RUN, Stages, raises, spread, tags, until

MODULE = os.environ["MODULE"]
RESP = int(os.environ["RESP"])
lib: Any = importlib.import_module(MODULE)
Client = lib.Redis if MODULE == "redis" else lib.Valkey


def connect(**options: Any) -> Any:
    return Client(**{"host": HOST, "port": PORT, "protocol": RESP, "decode_responses": True} | options)


def strings() -> None:
    with connect() as db, connect(decode_responses=False) as binary:
        keys = spread("string", 30)
        for n, key in enumerate(keys):
            equal(db.set(key, f"value {n}"), True)
        equal(db.mget([*keys, "no such key"]), [*[f"value {n}" for n in range(30)], None])
        equal(db.mset({key: n for n, key in enumerate(keys)}), True)
        equal([db.incrby(key, 5) for key in keys], [n + 5 for n in range(30)])
        equal(db.set(keys[0], "x", nx=True), None)
        equal(db.set(keys[0], "new", get=True), "5")
        equal(db.append(keys[0], "er"), 5)
        equal(db.getrange(keys[0], 1, 2), "ew")
        equal(db.getex(keys[0], ex=100), "newer")
        equal(95 < db.ttl(keys[0]) <= 100, True)
        equal(db.getdel(keys[0]), "newer")
        equal(db.exists(*keys), 29)
        large = bytes(range(256)) * 8192
        equal(binary.set(keys[1], large), True)
        equal(binary.get(keys[1]) == large, True)
        equal(binary.set(b"\x00\xff\r\n" + keys[2].encode(), b""), True)
        equal(binary.get(b"\x00\xff\r\n" + keys[2].encode()), b"")
        equal(db.delete(*keys), 29)
        with raises(lib.ResponseError, text="not an integer"):
            db.set(keys[0], "word")
            db.incr(keys[0])


def structures() -> None:
    with connect() as db:
        for key in spread("hash"):
            equal(db.hset(key, mapping={f"f{n}": n for n in range(50)}), 50)
            equal(db.hgetall(key), {f"f{n}": str(n) for n in range(50)})
            equal(db.hmget(key, "f1", "none", "f2"), ["1", None, "2"])
            equal(db.hincrbyfloat(key, "f1", 0.5), 1.5)
            equal(db.hdel(key, "f1", "f2"), 2)
        for key in spread("list"):
            equal(db.rpush(key, *range(10)), 10)
            equal(db.lrange(key, 2, 4), ["2", "3", "4"])
            equal(db.lpop(key, 2), ["0", "1"])
            equal(db.lpos(key, "5"), 3)
        for key in spread("set"):
            equal(db.sadd(key, *"abcd"), 4)
            equal(set(db.smembers(key)), set("abcd"))
            equal(list(db.smismember(key, ["a", "z"])), [1, 0])
        for tag in tags("sets"):
            db.sadd(tag + "1", *"abc")
            db.sadd(tag + "2", *"bcd")
            equal(set(db.sinter(tag + "1", tag + "2")), set("bc"))
            equal(db.sunionstore(tag + "3", tag + "1", tag + "2"), 4)
        for key in spread("zset"):
            equal(db.zadd(key, {"a": 1, "b": 2.5, "c": 3}), 3)
            equal([(m, s) for m, s in db.zrange(key, 0, -1, withscores=True)], [("a", 1.0), ("b", 2.5), ("c", 3.0)])
            equal(db.zscore(key, "b"), 2.5)
            equal(db.zrangebyscore(key, 2, "+inf"), ["b", "c"])
        for key in spread("geo"):
            db.geoadd(key, (13.361389, 38.115556, "Palermo"))
            equal(db.geopos(key, "Palermo", "none")[1], None)
        for key in spread("bits"):
            equal(db.setbit(key, 7, 1), 0)
            equal(db.bitcount(key), 1)
            equal(db.pfadd(key + "hll", *range(100)), 1)
            equal(95 < db.pfcount(key + "hll") < 105, True)


def pipeline() -> None:
    with connect() as db:
        keys = spread("pipe", 300)
        with db.pipeline(transaction=False) as pipe:
            for n, key in enumerate(keys):
                pipe.set(key, n).incr(key).get(key)
            answers = pipe.execute()
        equal(answers, [answer for n in range(300) for answer in (True, n + 1, str(n + 1))])
        with db.pipeline(transaction=False) as pipe:
            pipe.set(keys[0], "word").incr(keys[0]).get(keys[1])
            answers = pipe.execute(raise_on_error=False)
        equal([answers[0], type(answers[1]), answers[2]], [True, lib.ResponseError, "2"])


def multi() -> None:
    with connect() as db:
        for tag in tags("multi"):
            with db.pipeline() as pipe:
                pipe.set(tag + "a", 1).incrby(tag + "a", 41).rpush(tag + "l", "x", "y").lrange(tag + "l", 0, -1).ping()
                equal(pipe.execute(), [True, 42, 2, ["x", "y"], True])
            with db.pipeline() as pipe:
                pipe.set(tag + "w", "word").incr(tag + "w").set(tag + "a", "after")
                answers = pipe.execute(raise_on_error=False)
            equal([answers[0], type(answers[1]), answers[2]], [True, lib.ResponseError, True])


def watch() -> None:
    with connect() as db:
        for tag in tags("watch"):

            def count(_: int, tag: str = tag) -> None:
                for _ in range(10):

                    def one(pipe: Any) -> None:
                        value = int(pipe.get(tag + "n") or 0)
                        pipe.multi()
                        pipe.set(tag + "n", value + 1)
                        pipe.rpush(tag + "log", value)

                    db.transaction(one, tag + "n")

            with ThreadPoolExecutor(4) as threads:
                list(threads.map(count, range(4)))
            equal(db.get(tag + "n"), "40")
            equal(db.lrange(tag + "log", 0, -1), [str(n) for n in range(40)])
            with db.pipeline() as pipe, raises(lib.WatchError):
                pipe.watch(tag + "n")
                db.incr(tag + "n")
                pipe.multi()
                pipe.get(tag + "n")
                pipe.execute()


def lua() -> None:
    with connect() as db:
        body = "redis.call('INCRBY', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])"
        script = db.register_script(f"-- {RUN}\n{body}")
        for key in spread("lua"):
            equal(script(keys=[key], args=[7]), "7")
        db.script_flush()
        for key in spread("lua"):
            equal(script(keys=[key], args=[3]), "10")
        equal(db.script_exists(script.sha), [True])
        for tag in tags("luapipe"):
            with db.pipeline() as pipe:
                script(keys=[tag + "a"], args=[1], client=pipe)
                script(keys=[tag + "a"], args=[2], client=pipe)
                equal(pipe.execute(), ["1", "3"])
        equal(db.eval("return {1, 'two', {3}}", 0), [1, "two", [3]])
        with raises(lib.ResponseError, text="my own error"):
            db.eval("return redis.error_reply('my own error')", 1, spread("lua")[0])


def blocking() -> None:
    with connect() as db, connect() as producer:
        for tag in tags("block"):
            equal(db.blpop(tag + "none", timeout=0.1), None)
            for call, wanted in blocking_calls(db, tag):
                timer = threading.Timer(0.1, blocking_feed, (producer, tag))
                timer.start()
                got = call()
                timer.join()
                equal(got if isinstance(got, str) else list(got), wanted)
                producer.delete(tag + "l", tag + "z", tag + "other")
        exactly_once(spread("queue", 3))


def blocking_calls(db: Any, tag: str) -> list[tuple[Callable[[], Any], Any]]:
    """Each waits for what blocking_feed gives."""
    return [
        (lambda: db.blpop([tag + "empty", tag + "l"], timeout=5), [tag + "l", "one"]),
        (lambda: db.brpop(tag + "l", timeout=0), [tag + "l", "one"]),
        (lambda: db.blmove(tag + "l", tag + "other", 5, "LEFT", "RIGHT"), "one"),
        (lambda: db.brpoplpush(tag + "l", tag + "other", 5), "one"),
        (lambda: db.blmpop(5, 2, tag + "empty", tag + "l", direction="LEFT"), [tag + "l", ["one"]]),
        (lambda: db.bzpopmin([tag + "z"], timeout=5), [tag + "z", "member", 1.5]),
        (lambda: db.bzpopmax([tag + "z"], timeout=5), [tag + "z", "member", 1.5]),
    ]


def blocking_feed(db: Any, tag: str) -> None:
    db.rpush(tag + "l", "one")
    db.zadd(tag + "z", {"member": 1.5})


def exactly_once(queues: list[str]) -> None:
    """Consumers of each queue get every element once, and each producer's in its order."""
    number, consumers = 100, 2
    got: dict[str, list[str]] = {queue: [] for queue in queues}

    def consume(queue: str) -> None:
        with connect() as db:
            while (item := db.blpop(queue, timeout=5)) and item[1] != "end":
                got[queue].append(item[1])

    def produce(queue: str) -> None:
        with connect() as db:
            for n in range(number):
                db.rpush(queue, n)
            db.rpush(queue, *["end"] * consumers)

    threads = [threading.Thread(target=consume, args=(queue,)) for queue in queues for _ in range(consumers)]
    threads += [threading.Thread(target=produce, args=(queue,)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal({queue: sorted(map(int, items)) for queue, items in got.items()}, {q: [*range(number)] for q in queues})


def streams() -> None:
    with connect() as db, connect() as other:
        for key in spread("stream", 3):
            equal(db.xgroup_create(key, "group", "0", mkstream=True), True)
            ids = [db.xadd(key, {"n": n}) for n in range(10)]
            equal(db.xlen(key), 10)
            first = flat(db.xreadgroup("group", "alice", {key: ">"}, count=4))
            rest = flat(db.xreadgroup("group", "bob", {key: ">"}, count=100))
            equal([fields["n"] for _, fields in first + rest], [str(n) for n in range(10)])
            equal(db.xack(key, "group", *[entry for entry, _ in rest]), 6)
            pending = db.xpending(key, "group")
            equal([pending["pending"], pending["consumers"]], [4, [{"name": "alice", "pending": 4}]])
            claimed = db.xautoclaim(key, "group", "carol", min_idle_time=0)
            equal([entry for entry, _ in claimed[1]], ids[:4])
            timer = threading.Timer(0.1, lambda key=key: other.xadd(key, {"n": "late"}))
            timer.start()
            late = flat(db.xreadgroup("group", "alice", {key: ">"}, block=5000))
            timer.join()
            equal([fields["n"] for _, fields in late], ["late"])
            timer = threading.Timer(0.1, lambda key=key: other.xadd(key, {"n": "later"}))
            timer.start()
            later = flat(db.xread({key: "$"}, block=0))
            timer.join()
            equal([fields["n"] for _, fields in later], ["later"])
            equal(db.xread({key: "$"}, block=50) in ([], {}, None), True)
            equal(db.xinfo_stream(key)["length"], 12)


def flat(answer: Any) -> list[Any]:
    """Entries of a one-stream XREAD in RESP2's and in RESP3's shape."""
    if isinstance(answer, dict):
        return [entry for batches in answer.values() for batch in batches for entry in batch]
    return [entry for _, entries in answer for entry in entries]


def pubsub() -> None:
    with connect() as db, connect() as reader:
        channels = spread("channel", 3)
        listening = reader.pubsub()
        listening.subscribe(*channels)
        listening.psubscribe(f"{RUN}:pattern:*")
        seen = take(listening, 4)
        equal(sorted(m["type"] for m in seen), ["psubscribe", *["subscribe"] * 3])
        equal(sorted(m["data"] for m in seen), [1, 2, 3, 4])
        heard_by([db.publish(channel, f"to {channel}") for channel in channels], [1, 1, 1])
        equal([(m["channel"], m["data"]) for m in take(listening, 3)], [(c, f"to {c}") for c in channels])
        heard_by([db.publish(f"{RUN}:pattern:x", "matched")], [1])
        equal(
            [(m["type"], m["pattern"], m["data"]) for m in take(listening, 1)],
            [("pmessage", f"{RUN}:pattern:*", "matched")],
        )
        equal(dict(db.pubsub_numsub(*channels)), dict.fromkeys(channels, 1))
        equal(sorted(db.pubsub_channels(f"{RUN}:channel*")), sorted(channels))
        listening.ping()  # in RESP3 no message but a reply, and redis-py gives out its first letter
        equal(take(listening, 1)[0]["type"], "pong" if RESP == 2 else "P")
        listening.unsubscribe()
        listening.punsubscribe()
        equal(sorted(m["type"] for m in take(listening, 4)), ["punsubscribe", *["unsubscribe"] * 3])
        heard_by([db.publish(channels[0], "nobody")], [0])  # the node hears of the end a moment later
        listening.close()


def heard_by(told: list[int], wanted: list[int]) -> None:
    """PUBLISH counts the subscribers at the node that got it: in a cluster the number says little."""
    if SUBJECT == "plain":
        equal(told, wanted)
    equal(all(type(number) is int for number in told), True)


def sharded_pubsub() -> None:
    with connect() as db, connect() as reader:
        listening = reader.pubsub()
        channels = spread("shard", 3)
        for channel in channels:
            listening.ssubscribe(channel)
        take(listening, 3)
        equal([db.spublish(channel, channel) for channel in channels], [1, 1, 1])
        equal(sorted(m["data"] for m in take(listening, 3)), sorted(channels))
        listening.close()


def pubsub_thread() -> None:
    """Handlers in the client's own thread, 500 messages in order."""
    with connect() as db, connect() as reader:
        got: list[str] = []
        listening = reader.pubsub(ignore_subscribe_messages=True)
        listening.subscribe(**{f"{RUN}:thread": lambda message: got.append(message["data"])})
        thread = listening.run_in_thread(sleep_time=0.05, daemon=True)
        until(lambda: db.pubsub_numsub(f"{RUN}:thread")[0][1] == 1, "subscribed")
        with db.pipeline(transaction=False) as pipe:
            for n in range(500):
                pipe.publish(f"{RUN}:thread", n)
            pipe.execute()
        until(lambda: len(got) >= 500, "500 messages")
        thread.stop()
        thread.join(5)
        equal(got, [str(n) for n in range(500)])


def take(listening: Any, number: int) -> list[dict[str, Any]]:
    """That many messages."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 5
    while len(found) < number and time.monotonic() < deadline:
        if message := listening.get_message(timeout=1):
            found.append(message)
    equal(len(found), number)
    return found


def scan() -> None:
    with connect() as db:
        keys = {f"{RUN}:scan:{n}" for n in range(1000)}
        with db.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.set(key, 1)
            pipe.rpush(f"{RUN}:scan:list", 1)
            pipe.execute()
        equal(set(db.scan_iter(match=f"{RUN}:scan:*", count=50, _type="string")), keys)
        equal(set(db.scan_iter(match=f"{RUN}:scan:99*")), {key for key in keys if ":99" in key})
        equal(set(db.keys(f"{RUN}:scan:*")), keys | {f"{RUN}:scan:list"})
        for key in spread("scanned", 3):
            db.hset(key + "h", mapping={f"f{n}": n for n in range(600)})
            equal(dict(db.hscan_iter(key + "h")), {f"f{n}": str(n) for n in range(600)})
            db.sadd(key + "s", *range(600))
            equal(set(db.sscan_iter(key + "s")), {str(n) for n in range(600)})
            db.zadd(key + "z", {str(n): n for n in range(600)})
            equal(dict(db.zscan_iter(key + "z")), {str(n): float(n) for n in range(600)})


def lock() -> None:
    with connect() as db:
        for name in spread("lock", 3):
            inside, most = [0], [0]

            def work(_: int, name: str = name, inside: list[int] = inside, most: list[int] = most) -> None:
                with connect() as own, own.lock(name, timeout=10, blocking_timeout=10, sleep=0.01):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.01)
                    inside[0] -= 1

            with ThreadPoolExecutor(5) as threads:
                list(threads.map(work, range(10)))
            equal(most[0], 1)
            held = db.lock(name, timeout=10)
            equal(held.acquire(), True)
            equal(db.lock(name).acquire(blocking=False), False)
            equal(held.extend(50), True)
            equal(50_000 < db.pttl(name) <= 60_000, True)
            equal(held.reacquire(), True)
            equal(held.owned(), True)
            db.delete(name)
            with raises(lib.exceptions.LockNotOwnedError):
                held.release()


def cache() -> None:
    """Two writers and a reader with its own cache: what it reads never goes back, and ends at the last value."""
    if RESP == 2 or MODULE != "redis":
        raise NotTried("the client has it with redis-py and RESP3 only")
    from redis.cache import CacheConfig
    from redis.connection import CacheProxyConnection

    with connect() as db:
        server = db.execute_command("HELLO", 3)
    name = server["server"]
    if name != "redis" or tuple(map(int, server["version"].split("."))) < (7, 4):
        remark("redis-py has its cache only for servers that say `redis`, 7.4 or later: that check is lifted")
        CacheProxyConnection.DEFAULT_SERVER_NAME = name
        CacheProxyConnection.MIN_ALLOWED_VERSION = "7.0.0"
    with connect(cache_config=CacheConfig(max_size=1000)) as reader, connect() as writer:
        keys = spread("cached", 3)
        for key in keys:
            writer.set(key, 0)
            equal(reader.get(key), "0")
            equal(reader.get(key), "0")
        equal(reader.get_cache().size, 3)
        writer.mset(dict.fromkeys(keys, 1))
        for key in keys:
            until(lambda key=key: reader.get(key) == "1", "the new value is seen", 5)
        stop = threading.Event()

        def write(key: str) -> None:
            with connect() as own:
                while not stop.is_set():
                    own.incr(key)

        threads = [threading.Thread(target=write, args=(key,)) for key in keys[:2]]
        for thread in threads:
            thread.start()
        last = dict.fromkeys(keys, 0)
        until_s = time.monotonic() + 2
        try:
            while time.monotonic() < until_s:
                for key in keys:
                    value = int(reader.get(key))
                    equal(value >= last[key], True)
                    last[key] = value
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        for key in keys:
            until(lambda key=key: reader.get(key) == writer.get(key), "the last value is seen", 5)


def monitor() -> None:
    with connect() as db, connect() as reader, reader.monitor() as watching:
        marks = spread("monitored", 3)
        for mark in marks:
            db.set(mark, "x")
        seen: list[str] = []
        while len(seen) < 3:
            command = watching.next_command()["command"]
            seen += [mark for mark in marks if command == f"SET {mark} x"]
        equal(sorted(seen), sorted(marks))


def connection() -> None:
    """What the client says about itself, a database's number, a pool shared by threads."""
    with connect(client_name=f"name-{RUN}") as db:
        equal(db.ping(), True)
        equal(db.client_getname(), f"name-{RUN}")
        own = db.client_info()
        equal([own["name"], own["lib-name"].partition("(")[0]], [f"name-{RUN}", f"{MODULE}-py"])
        equal([c["name"] for c in db.client_list() if c["name"] == f"name-{RUN}"], [f"name-{RUN}"])
        server = db.info("server")
        equal(server.get("redis_mode", server.get("server_mode")), "standalone")
        equal(db.echo("said"), "said")
        pool = lib.BlockingConnectionPool(host=HOST, port=PORT, protocol=RESP, decode_responses=True, max_connections=4)
        with Client(connection_pool=pool) as shared, ThreadPoolExecutor(16) as threads:
            keys = spread("pool", 6) * 20
            equal(sorted(threads.map(shared.incr, keys)), sorted([n + 1 for n in range(20)] * 6))
        pool.disconnect()


def reconnect() -> None:
    """The client's own retries are all that a restart of the proxy needs."""
    with connect() as db, connect() as reader:
        keys = spread("restart", 6)
        for key in keys:
            db.set(key, 1)
        listening = reader.pubsub()
        listening.subscribe(f"{RUN}:again")
        take(listening, 1)
        restart()
        for key in keys:
            equal(db.set(key, 2), True)
            equal(db.get(key), "2")
        until(lambda: _heard(listening, db), "a message after the restart", 10)
        listening.close()


def _heard(listening: Any, db: Any) -> bool:
    try:
        db.publish(f"{RUN}:again", "here")
        message = listening.get_message(timeout=0.2)
    except lib.ConnectionError:
        return False
    return bool(message and message["data"] == "here")


def add_to(stages: Stages) -> None:
    for function in (strings, structures, pipeline, multi, watch, lua, blocking, streams, pubsub, sharded_pubsub,
                     pubsub_thread, scan, lock, cache, monitor, connection, reconnect):  # fmt: skip
        stages.add(function.__name__.replace("_", " "))(function)
