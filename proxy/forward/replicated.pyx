# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""WAIT and WAITAOF: the primaries that a client wrote to, what each is asked, and their answers as one. See blocking.

A server counts the replicas that have what the connection of WAIT wrote last (replicationCountAcksByOffset), and the
proxy's client has written on another one. So the leased connection writes something before, after all that its client
wrote there: FUNCTION RESTORE of no functions, which changes nothing and is replicated. (Redis before 7.2 takes any
command for a write, and before 7.0 there is no FUNCTION: therefore PING.) If that is refused (no permission, no memory,
too few replicas to write), so is WAIT: the count would say nothing.
"""
from libc.stdint cimport uint64_t

from proxy.forward.node cimport Node, Shard

from proxy.resp import errors
from proxy.resp.encode import encode_command

# FUNCTION DUMP of Redis 7.0 without functions: the version of its format and a checksum. Newer servers read it.
NO_FUNCTIONS = b"\n\x00]\x9b\\@\x0f\x7f\xa2\xda"
COVER = encode_command("PING") + encode_command("FUNCTION", "RESTORE", NO_FUNCTIONS)


cdef list shards_written(Router router, uint64_t wrote):
    """The primaries of the shards whose nodes have these bits (Account.wrote); all when none has, or one is not known.

    A node that was demoted is represented by its shard's primary.
    """
    cdef Node node
    cdef Shard shard
    cdef uint64_t found = 0, bit
    cdef list primaries = []
    for node in router.nodes.values():
        bit = <uint64_t> 1 << (node.number & 63)
        if not wrote & bit:
            continue
        if not node.owner:
            for shard in router.shards:
                if node in shard.replicas and shard.primary is not None and shard.primary.owner:
                    node = shard.primary
                    break
        if node.owner:
            found |= bit
            if node not in primaries:
                primaries.append(node)
    return list(router.primaries) if wrote & ~found or not wrote else primaries


cdef bytes fewest(list replies):
    """Integers, or arrays of as many integers (WAITAOF), as their minimum, one by one."""
    cdef list least = None
    for reply in replies:
        try:
            found = [int(word[1:]) for word in reply.split(b"\r\n") if word[:1] == b":"]
        except ValueError:
            found = []
        if not found or (least is not None and len(found) != len(least)):
            return errors.BAD_PART
        least = found if least is None else [min(pair) for pair in zip(least, found)]
    if replies[0][:1] != b"*":
        return b":%d\r\n" % least[0]
    return b"*%d\r\n" % len(least) + b"".join([b":%d\r\n" % one for one in least])
