"""What clients say that no package registry of ours carries: each frame of the proxy's is the one a plain server gives.

Written down from their sources (GitHub repository and path), in plain (non-cluster) mode:
- Jedis, redis/jedis: src/main/java/redis/clients/jedis/Connection.java (initializeFromClientConfig, ping),
  JedisFactory.java (activateObject, validateObject, destroyObject), Transaction.java, JedisPubSubBase.java
- Lettuce, redis/lettuce: src/main/java/io/lettuce/core/RedisHandshake.java (tryHandshakeResp3, initializeResp2,
  applyConnectionMetadata, sendMaintenanceNotificationsOn: what it says of an error is of no consequence to it)
- Redisson, redisson/redisson: redisson/src/main/java/org/redisson/client/handler/BaseConnectionHandler.java
  (channelActive), redisson/src/main/java/org/redisson/RedissonLock.java (tryLockInnerAsync, unlock, forceUnlockAsync)
- go-redis, redis/go-redis: redis.go (initConn, txPipelineProcessCmds), tx.go (Watch, Close), pubsub.go (Ping,
  initHealthCheck)
- StackExchange.Redis, StackExchange/StackExchange.Redis: src/StackExchange.Redis/ServerEndPoint.cs (HandshakeAsync,
  AutoConfigureAsync, GetTracerMessage), RedisTransaction.cs (QueueMessage, TransactionMessage.GetMessages)

A line is `NAME> COMMAND`, with NAME one of the dialogue's connections: it is sent, and one reply is taken. Behind ` & `
further commands go out in the same write. `NAME<` takes one more frame: a push, or another confirmation of one command.
`~` before a command: only the type of its reply has to be the same (PUBLISH counts receivers at one node of a cluster).
"""

from __future__ import annotations

import re
import shlex
from contextlib import ExitStack

import pytest

from tests.support.cluster import Standalone
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode

LOCK = (
    "if (redis.call('exists', KEYS[1]) == 0) then redis.call('hset', KEYS[1], ARGV[2], 1); "
    "redis.call('pexpire', KEYS[1], ARGV[1]); return nil; end; "
    "if (redis.call('hexists', KEYS[1], ARGV[2]) == 1) then redis.call('hincrby', KEYS[1], ARGV[2], 1); "
    "redis.call('pexpire', KEYS[1], ARGV[1]); return nil; end; return redis.call('pttl', KEYS[1]);"
)
UNLOCK = (
    "if (redis.call('exists', KEYS[1]) == 0) then redis.call('publish', KEYS[2], ARGV[1]); return 1; end;"
    "if (redis.call('hexists', KEYS[1], ARGV[3]) == 0) then return nil;end; "
    "local counter = redis.call('hincrby', KEYS[1], ARGV[3], -1); "
    "if (counter > 0) then redis.call('pexpire', KEYS[1], ARGV[2]); return 0; "
    "else redis.call('del', KEYS[1]); redis.call('publish', KEYS[2], ARGV[1]); return 1; end; return nil;"
)
FORCE = "if (redis.call('del', KEYS[1]) == 1) then redis.call('publish', KEYS[2], ARGV[1]); return 1 else return 0 end"
WORDS = {"LOCK": LOCK, "UNLOCK": UNLOCK, "FORCE": FORCE, "ID": "\x00\x01\x80\xfe5f0c\r\n"}

JEDIS = """
a> CLIENT SETINFO LIB-NAME jedis & CLIENT SETINFO LIB-VER 5.1.0
a> PING
a> SELECT 0
b> ~ HELLO 3
b> CLIENT SETNAME pool & CLIENT SETINFO LIB-NAME jedis & CLIENT SETINFO LIB-VER 6.0.0
b> PING
a> SET user:1 Ada
a> GET user:1
b> HSET user:2 name Grace
b> HGETALL user:2
a> WATCH {user:1}:n
a> GET {user:1}:n
a> MULTI & SET {user:1}:n 1 & INCR {user:1}:n & EXEC
a> MULTI & SET {user:1}:n 7
a> DISCARD
a> WATCH {user:1}:n
b> SET {user:1}:n 9
a> MULTI & INCR {user:1}:n & EXEC
a> UNWATCH
a> EVALSHA ffffffffffffffffffffffffffffffffffffffff 0
a> QUIT
"""
JEDIS_PUBSUB = """
a> SUBSCRIBE news sport
a<
a> PSUBSCRIBE n*
b> ~ PUBLISH news hello
a<
a<
a> PING
a> PING still
a> UNSUBSCRIBE news
a> UNSUBSCRIBE
a> PUNSUBSCRIBE
a> GET nosuch
c> ~ HELLO 3
c> SUBSCRIBE news
c> PING
b> ~ PUBLISH news again
c<
c> UNSUBSCRIBE
"""
LETTUCE = """
a> ~ HELLO 3
a> CLIENT SETINFO lib-name Lettuce & CLIENT SETINFO lib-ver 6.5.0.RELEASE/b4263f1
a> CLIENT MAINT_NOTIFICATIONS on moving-endpoint-type none
b> ~ HELLO 3 SETNAME orders
b> CLIENT GETNAME
c> PING
c> CLIENT SETNAME orders & CLIENT SETINFO lib-name Lettuce & CLIENT SETINFO lib-ver 6.3.2.RELEASE/9a6b1ab
a> SELECT 0
a> PING
a> SET order:1 new & SET order:2 new & GET order:1 & GET order:3
a> MULTI
a> SET {order}:1 paid
a> LPUSH {order}:1 wrong
a> GET {order}:1
a> EXEC
a> ~ INFO server
c> QUIT
"""
LETTUCE_PUBSUB = """
a> ~ HELLO 3
a> SUBSCRIBE orders
a> PSUBSCRIBE order*
a> SSUBSCRIBE orders
a> GET order:1
b> ~ PUBLISH orders paid
a<
a<
b> SPUBLISH orders sent
a<
a> PING
a> UNSUBSCRIBE orders
a> PUNSUBSCRIBE order*
a> SUNSUBSCRIBE orders
"""
REDISSON = """
a> CLIENT SETNAME redisson & PING
a> EVAL $LOCK 1 stock 30000 7f1c:1
a> EVAL $LOCK 1 stock 30000 7f1c:1
b> ~ EVAL $LOCK 1 stock 30000 9d2e:1
b> EVAL $UNLOCK 2 stock redisson_lock__channel__{stock} 0 30000 9d2e:1
a> PEXPIRE stock 30000
a> HEXISTS stock 7f1c:1
a> HGET stock 7f1c:1
a> EVAL $UNLOCK 2 stock redisson_lock__channel__{stock} 0 30000 7f1c:1
a> EVAL $UNLOCK 2 stock redisson_lock__channel__{stock} 0 30000 7f1c:1
a> EXISTS stock
b> EVAL $LOCK 1 stock 30000 9d2e:1
b> EVAL $FORCE 2 stock redisson_lock__channel__{stock} 0
a> PING
"""
REDISSON_WAITING = """
a> EVAL $LOCK 1 stock 30000 7f1c:1
b> CLIENT SETNAME redisson & PING
b> SUBSCRIBE redisson_lock__channel__{stock}
a> EVAL $UNLOCK 2 stock redisson_lock__channel__{stock} 0 30000 7f1c:1
b<
b> PING
b> UNSUBSCRIBE redisson_lock__channel__{stock}
b> PING
"""
GO_REDIS = """
a> ~ hello 3
a> client setinfo LIB-NAME go-redis(,go1.22.1) & client setinfo LIB-VER 9.5.1
b> ~ hello 3
b> client maint_notifications on moving-endpoint-type internal-ip
b> client setname worker
a> set n 1 ex 60
a> get n
a> get nosuch
a> multi & incr n & expire n 60 & exec
a> watch n
a> get n
b> set n 5
a> multi & set n 3 & exec
a> unwatch
a> evalsha ffffffffffffffffffffffffffffffffffffffff 1 n
a> set a 1 & set b 2 & set c 3 & get a & get b & get c
a> ping
"""
GO_REDIS_PUBSUB = """
a> ~ hello 3
a> subscribe jobs other
a<
a> psubscribe j*
b> ~ publish jobs 1
a<
a<
a> ping
a> unsubscribe other
a> unsubscribe
a> punsubscribe
a> ping
"""
STACKEXCHANGE = """
a> CLIENT SETNAME web01(SE.Redis-v2.7.33)
a> CLIENT SETINFO lib-name SE.Redis & CLIENT SETINFO lib-ver 2.7.33
a> ~ CONFIG GET timeout
a> ~ CONFIG GET replica-read-only
a> ~ CONFIG GET databases
a> SENTINEL MASTERS
a> ~ INFO replication
a> ~ INFO server
a> ECHO $ID
a> GET __Booksleeve_TieBreak
a> PING
a> SET key v PX 60000 NX
a> SET key v PX 60000 NX
a> WATCH key & GET key
a> MULTI & DEL key & EXEC
a> WATCH key & EXISTS key
a> UNWATCH
a> SET {k}:a 1 & SET {k}:b 2
a> MULTI & EVAL 'return redis.call("get", KEYS[1])' 1 {k}:a & GET {k}:b & EXEC
a> SCRIPT EXISTS ffffffffffffffffffffffffffffffffffffffff
a> EVALSHA ffffffffffffffffffffffffffffffffffffffff 0
a> QUIT
"""
STACKEXCHANGE_PUBSUB = """
a> CLIENT SETNAME web01(SE.Redis-v2.7.33)
a> ECHO $ID & SUBSCRIBE __Booksleeve_MasterChanged
a> SUBSCRIBE app
a> PING
a> UNSUBSCRIBE 5f0c2b
b> ~ PUBLISH app hello
a<
a> PSUBSCRIBE app*
a> UNSUBSCRIBE app
"""

# Redis 7.0 has no CLIENT SETINFO yet; the proxy has.
SETINFO_UNKNOWN = re.compile(rb"-ERR unknown subcommand 'setinfo'", re.IGNORECASE)
DIALOGUES = [
    pytest.param(JEDIS, id="jedis"),
    pytest.param(JEDIS_PUBSUB, id="jedis pub/sub"),
    pytest.param(LETTUCE, id="lettuce"),
    pytest.param(LETTUCE_PUBSUB, id="lettuce pub/sub"),
    pytest.param(REDISSON, id="redisson lock"),
    pytest.param(REDISSON_WAITING, id="redisson lock that is waited for"),
    pytest.param(GO_REDIS, id="go-redis"),
    pytest.param(GO_REDIS_PUBSUB, id="go-redis pub/sub"),
    pytest.param(STACKEXCHANGE, id="stackexchange"),
    pytest.param(STACKEXCHANGE_PUBSUB, id="stackexchange pub/sub"),
]


def frames_of(line: str) -> tuple[str, list[bytes], bool]:
    """The connection's name, what is sent, and whether only the reply's type counts."""
    name, mark, rest = line[0], line[1], line[2:].strip()
    if mark == "<":
        return name, [], False
    alike = rest.startswith("~ ")
    commands = []
    for command in rest.removeprefix("~ ").split(" & "):
        words = [WORDS[word[1:]] if word[:1] == "$" else word for word in shlex.split(command)]
        commands.append(encode(*(word.encode("latin-1") for word in words)))
    return name, commands, alike


@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_the_dialogue_is_that_with_a_plain_server(proxy: ProxyDaemon, standalone: Standalone, dialogue: str) -> None:
    with ExitStack() as stack:
        pairs: dict[str, tuple[RawClient, RawClient]] = {}
        stack.enter_context(standalone.raw()).command("FLUSHALL")
        for line in dialogue.strip().splitlines():
            name, commands, alike = frames_of(line)
            if name not in pairs:
                pairs[name] = (stack.enter_context(proxy.raw(5)), stack.enter_context(standalone.raw(5)))
            for one in pairs[name]:
                one.send(b"".join(commands))
            for _ in commands or [None]:
                through, direct = (one.frame() for one in pairs[name])
                if SETINFO_UNKNOWN.match(direct):
                    direct = b"+OK\r\n"
                if alike:
                    assert through[:1] == direct[:1], (line, through[:300], direct[:300])
                else:
                    assert through == direct, line


def test_stackexchange_is_shown_one_node(proxy: ProxyDaemon) -> None:
    """It asks for CLUSTER NODES when it connects (AutoConfigureAsync), and takes any answer for that of a cluster.

    ClusterNodesProcessor in src/StackExchange.Redis/ResultProcessor.cs: so the only node there must be the one it is
    connected to, with every slot, or it would go past the proxy.
    """
    with proxy.raw() as client:
        nodes = client.command("CLUSTER", "NODES").split(b"\r\n", 1)[1].decode().strip().splitlines()
    assert len(nodes) == 1
    _, address, flags, primary, *_, slots = nodes[0].split()
    assert address.startswith(f"127.0.0.1:{proxy.port}@")
    assert flags == "myself,master"
    assert primary == "-"
    assert slots == "0-16383"
