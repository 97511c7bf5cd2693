"""Every data type through the proxy answers byte for byte as one standalone server does, on RESP2 and RESP3."""

from __future__ import annotations

import shlex

import pytest

from proxy.embedded import EmbeddedCluster
from tests.support.cluster import Standalone
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode

# Commands a server does not have are "unknown command" on both sides: that text is compared too.
SCRIPTS = {
    "strings": """
        SET s hello | GET s | GET none | GETRANGE s 1 3 | SETRANGE s 1 EY | GET s | STRLEN s | APPEND s ' world'
        GETSET s n | GETDEL s | EXISTS s | SET n 10 | INCR n | INCRBY n 5 | DECR n | DECRBY n 3
        INCRBYFLOAT n 0.5 | GET n | SETNX n 1 | SETNX m 1 | SET n 2 XX GET | SET q 2 XX | SETEX e 100 v
        PSETEX e 100000 v | TTL m | GETEX e PERSIST | TTL e | LCS {l}a {l}b | SET {l}a ohmytext
        SET {l}b mynewtext | LCS {l}a {l}b | LCS {l}a {l}b LEN | SUBSTR n 0 0""",
    "expiry": """
        SET k v | TTL k | PTTL k | EXPIRE k 1000 NX | EXPIRE k 500 GT | PERSIST k | EXPIREAT k 4102444800
        EXPIRETIME k | PEXPIREAT k 4102444800000 | PEXPIRETIME k | EXPIRE none 10 | TTL none | EXPIRE k -1
        EXISTS k | EXPIRE k x""",
    "keys": """
        SET k v | TYPE k | TYPE none | OBJECT ENCODING k | OBJECT REFCOUNT k | DUMP none | COPY {a}1 {a}2
        SET {a}1 v | COPY {a}1 {a}2 | GET {a}2 | RENAME {a}1 {a}3 | RENAMENX {a}2 {a}3 | RENAME {a}9 {a}8
        OBJECT HELP | OBJECT ENCODING none""",
    "bits": """
        SETBIT b 7 1 | GETBIT b 7 | GETBIT b 100 | BITCOUNT b | BITPOS b 1 | BITCOUNT b 0 0 BYTE
        BITFIELD b SET u8 0 200 GET u8 0 | BITFIELD_RO b GET u8 0 | BITOP NOT {b}dest {b}src | SET {b}src abc
        BITOP NOT {b}dest {b}src | GET {b}dest | SETBIT b x 1""",
    "lists": """
        RPUSH l a b c | LPUSH l z | LPUSHX none a | RPUSHX l d | LLEN l | LRANGE l 0 -1 | LINDEX l 0
        LINDEX l 99 | LSET l 0 y | LSET l 99 y | LINSERT l BEFORE a aa | LREM l 1 aa | LPOS l b
        LPOS l b COUNT 0 | LTRIM l 1 2 | LPOP l | RPOP l 2 | LPOP l | LPOP none 2 | RPUSH {l}a 1 2
        LMOVE {l}a {l}b LEFT RIGHT | RPOPLPUSH {l}a {l}b | LRANGE {l}b 0 -1 | LMPOP 1 {l}b LEFT | LPOP l x""",
    "hashes": """
        HSET h f v g w | HGET h f | HGET h none | HGETALL h | HMGET h f none g | HMSET h a 1 | HINCRBY h a 4
        HINCRBYFLOAT h a 0.5 | HSETNX h a 1 | HLEN h | HKEYS h | HVALS h | HEXISTS h f | HSTRLEN h f
        HDEL h f none | HGETALL none | HSCAN h 0 | HINCRBY h g 1 | HEXPIRE h 100 FIELDS 1 g
        HPERSIST h FIELDS 1 g | HGETDEL h FIELDS 1 g | HRANDFIELD none""",
    "sets": """
        SADD s 1 2 3 | SADD s 3 | SCARD s | SISMEMBER s 1 | SMISMEMBER s 1 9 | SMEMBERS s | SREM s 1
        SMEMBERS none | SADD {s}a 1 2 3 | SADD {s}b 2 3 4 | SINTER {s}a {s}b | SUNION {s}a {s}b
        SDIFF {s}a {s}b | SINTERSTORE {s}c {s}a {s}b | SUNIONSTORE {s}c {s}a {s}b | SDIFFSTORE {s}c {s}a {s}b
        SMEMBERS {s}c | SINTERCARD 2 {s}a {s}b | SMOVE {s}a {s}b 1 | SSCAN {s}a 0 | SPOP none | SRANDMEMBER none""",
    "sorted sets": """
        ZADD z 1 a 2 b 3.5 c | ZADD z XX CH INCR 1 a | ZSCORE z a | ZSCORE z none | ZMSCORE z a none | ZCARD z
        ZCOUNT z -inf +inf | ZRANGE z 0 -1 | ZRANGE z 0 -1 WITHSCORES | ZRANGE z 0 -1 REV
        ZREVRANGE z 0 -1 WITHSCORES | ZRANGEBYSCORE z 1 3 LIMIT 0 1 | ZREVRANGEBYSCORE z 3 1 | ZRANK z c
        ZREVRANK z c | ZRANK z none | ZINCRBY z 2 a | ZREM z a | ZPOPMIN z | ZPOPMAX z | ZPOPMIN z
        ZADD z 0 a 0 b 0 c | ZRANGEBYLEX z - + | ZLEXCOUNT z - + | ZREMRANGEBYLEX z [a [a
        ZREMRANGEBYRANK z 0 0 | ZREMRANGEBYSCORE z 0 0 | ZADD {z}a 1 x 2 y | ZADD {z}b 3 y
        ZUNION 2 {z}a {z}b WITHSCORES | ZINTER 2 {z}a {z}b | ZDIFF 2 {z}a {z}b | ZUNIONSTORE {z}c 2 {z}a {z}b
        ZINTERSTORE {z}c 2 {z}a {z}b WEIGHTS 2 3 | ZDIFFSTORE {z}c 2 {z}a {z}b | ZINTERCARD 2 {z}a {z}b
        ZRANGESTORE {z}c {z}a 0 -1 | ZMPOP 1 {z}a MIN | ZSCAN {z}b 0 | ZADD z x a""",
    "hyperloglog": """
        PFADD p a b c | PFADD p a | PFCOUNT p | PFADD {p}a 1 2 | PFADD {p}b 2 3 | PFMERGE {p}c {p}a {p}b
        PFCOUNT {p}c | PFCOUNT {p}a {p}b | SET x y | PFADD x 1""",
    "geo": """
        GEOADD g 13.361389 38.115556 Palermo 15.087269 37.502669 Catania | GEODIST g Palermo Catania km
        GEOPOS g Palermo none | GEOPOS none a | GEOHASH g Palermo none
        GEOSEARCH g FROMLONLAT 15 37 BYRADIUS 200 km ASC
        GEOSEARCH g FROMMEMBER Palermo BYBOX 400 400 km ASC WITHCOORD WITHDIST
        GEORADIUS g 15 37 200 km WITHDIST ASC | GEORADIUSBYMEMBER g Palermo 200 km | GEOADD {g}a 13 38 P
        GEOSEARCHSTORE {g}b {g}a FROMLONLAT 13 38 BYRADIUS 10 km | GEORADIUS {g}a 13 38 10 km STORE {g}c
        ZCARD {g}c | GEOADD g 200 100 x""",
    "streams": """
        XADD x 1-1 f v | XADD x 2-1 f v g w | XADD x 1-1 f v | XLEN x | XRANGE x - + | XREVRANGE x + - COUNT 1
        XREAD COUNT 1 STREAMS x 0 | XREAD STREAMS x 9 | XREAD STREAMS {x}a {x}b 0 0 | XGROUP CREATE x g 0
        XGROUP CREATE x g 0 | XREADGROUP GROUP g c COUNT 1 STREAMS x > | XACK x g 1-1 | XPENDING x g
        XREADGROUP GROUP g c STREAMS x 0 | XCLAIM x g d 0 2-1 JUSTID | XAUTOCLAIM x g d 0 0 | XINFO GROUPS none
        XGROUP DESTROY x g | XDEL x 1-1 | XTRIM x MAXLEN 0 | XADD x 3-1 f | XSETID x 9-9
        XREADGROUP GROUP g c STREAMS x >""",
    "scripts": """
        EVAL 'return 1' 0 | EVAL 'return KEYS[1]' 1 k | EVAL 'return redis.call("set",KEYS[1],ARGV[1])' 1 k v
        GET k | EVAL 'return {1,2,{3,"x"}}' 1 k | EVAL 'return redis.error_reply("MY error")' 1 k
        EVAL 'return nil' 1 k | EVAL_RO 'return redis.call("get",KEYS[1])' 1 k
        EVAL 'return redis.call("nosuch")' 1 k | EVALSHA ffffffffffffffffffffffffffffffffffffffff 1 k
        EVAL 'return #KEYS' 2 {a}1 {a}2 {b}1 | EVAL 'return 1' x | EVAL 'return 1' -1 | EVAL 'return 1' 5 a
        EVAL 'return {double=3.5}' 1 k""",
}


def commands_of(script: str) -> list[list[str]]:
    return [shlex.split(line) for line in SCRIPTS[script].replace("\n", "|").split("|") if line.strip()]


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("script", SCRIPTS)
def test_answers_as_one_server_does(
    script: str, protocol: int, proxy: ProxyDaemon, standalone: Standalone, cluster: EmbeddedCluster
) -> None:
    lines = commands_of(script)
    with proxy.raw() as through, standalone.raw() as direct:
        assert direct.command("FLUSHALL") == b"+OK\r\n"
        for client in (through, direct):
            if protocol == 3:
                client.command("HELLO", 3)
        for words in lines:
            assert (words, through.command(*words)) == (words, direct.command(*words))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_whole_pipeline_of_every_type(protocol: int, proxy: ProxyDaemon, standalone: Standalone) -> None:
    lines = [words for script in SCRIPTS for words in commands_of(script)]

    def run(client: RawClient) -> list[bytes]:
        if protocol == 3:
            client.command("HELLO", 3)
        # No command depends on one of another slot: between slots there is no order of execution to compare.
        client.send(b"".join(encode(*words) for words in lines))
        return client.frames(len(lines))

    with proxy.raw() as through, standalone.raw() as direct:
        direct.command("FLUSHALL")
        assert list(zip(lines, run(through), strict=True)) == list(zip(lines, run(direct), strict=True))
