# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Nodes that owe replies and say nothing; nodes that the cluster has given up.

A node is silent when a command was wholly sent to it, none of its connections has brought a byte for so long
(BackendSettings.silent_ns), and the command is not one that blocks. It may hang, or be cut off; it may also be busy
with something slow. So that is a suspicion, which costs a healthy node nothing:

    what is sent    nothing more on the connection: what comes for it waits in the window, unsent, and can go to
                    another node without a doubt about it, whoever that may be
    reads           which another node may serve are asked there (Pipeline.give_away), new ones too (Shard.pick)
    control         is told now and then, looks at the topology again and again, and at the node

and it ends with the first byte, or when nothing is owed any more. What was sent is decided when the cluster has
decided: it has voted a silent node failed, or given its role to another one. Then its connections are cut: reads and
what was not sent go to whoever is the owner now, writes that were sent get their error (Exchange.lost), and what the
node says when it comes back reaches nobody. One that has failed *and* lost its role is cut whether it speaks or not,
for it may be one that comes back and does not know yet; one that has lost its role in order answers what it has got.
"""
from libc.stdint cimport int64_t

from proxy.forward.backend cimport BACKEND_BACKOFF, BACKEND_CONNECTING, BACKEND_UP, Backend
from proxy.forward.pipeline cimport span

cdef int64_t TELL_NS = 250_000_000      # between two times that control is told
cdef enum:
    SOONER = 4                          # times: one that the cluster has voted failed need not be silent for so long


cdef bint owes(Backend b, int64_t silent_ns, int64_t now) noexcept:
    """Whether nothing has come for so long, though something was wholly sent that is to be answered at once.

    Half a command is answered by nobody: held back, the rest of it would be waited for by the node for ever.
    """
    return (
        b.state == BACKEND_UP and b.head != NULL and b.sent_pos >= b.head.pos + span(b.head) and not b.deaf
        and (not b.patient or b.passing)
        and now - b.progress_ns > silent_ns and now - b.node.heard_ns > silent_ns
    )


cdef bint deposed(Backend b) noexcept:
    """Whether its node has lost the role in which it was connected to."""
    return b.node.gone or b.readonly != b.node.replica or b.node.deposed and (
        b.draining or b.pool is None or b.pool.owner is not None
    )


cdef bint watch(Node node, BackendSettings settings, int64_t now) except -1:
    """Whether control is to be told of this node: it is silent, or a primary that cannot be reached. Part of the sweep.
    """
    cdef Backend b
    cdef bint silent = False, unreached = False
    cdef int64_t silent_ns = settings.silent_ns // SOONER if node.failing else settings.silent_ns
    for b in node.backends():
        if b.state == BACKEND_CONNECTING or b.state == BACKEND_BACKOFF:
            unreached = unreached or b.pool is not None
        elif owes(b, silent_ns, now):
            if not b.wary:
                b.read_once()                   # this process may have stood still itself
                if not owes(b, silent_ns, now):
                    continue
                b.wary = True
                b.want(b.heard())
            silent = True
    if silent:
        node.silent = True
        judge(node)
    elif node.silent and not unreached:
        node.heard()                            # it owes nothing any more, as when what is owed now blocks
    if not node.silent and not (node.owner and node.resp2.down_since_ns) or now - node.told_ns < TELL_NS:
        return False
    node.told_ns = now
    if silent:
        for b in node.backends():
            if b.wary:
                b.give_away(b.passing and not b.scan.push)
    return True


cdef void doubt(Node node):
    """The cluster has voted it failed: whether it answers is found out by new connections before anything is sent."""
    cdef Backend b
    for b in node.backends():
        if b.fd >= 0 and b.head == NULL and b.pool is not None:
            b.lose("the cluster has voted the node failed")


cdef void judge(Node node):
    """Cuts what the cluster has decided about."""
    cdef Backend b
    for b in node.backends():
        if node.failing:
            if deposed(b):
                if b.fd >= 0:
                    b.lose("the cluster has voted the node failed and given its role to another one")
                else:
                    b.close()
            elif node.silent and b.fd >= 0:
                b.lose("the cluster has voted the node failed, and it says nothing")
        elif b.wary and deposed(b):
            b.lose("the node has lost its role and says nothing")
