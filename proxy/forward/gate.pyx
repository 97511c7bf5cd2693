# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""PROXY PAUSE in the data path: which nodes are paused, and what waits for that to be over.

Nothing new is sent to a paused node (Router says PAUSED), and nothing that may go elsewhere waits for it. While any
node is paused every command asks where it would go before it is begun (Exchange.full counts the pause as it counts
windows that are full, so nothing costs more while none is): one for a paused node stays in its client's input, and
nothing further of that client is read (`gated`; prepare.gate). What was begun before, and comes back or was never sent,
is parked, and its time stands still. What blocks at the node is ended there by CLIENT UNBLOCK, when nothing was popped
for it, and is begun again with what is left of its time (Blocking.suspend).

A client that ends its input meanwhile, or leaves, stays until what it had sent is carried out, as if the node were slow
(so many at a time: DataPath.keeps).

What was sent before is answered: `pending` says of how much that is not true yet. Connections that the node closes
meanwhile are not made again until they are wanted (`reconnect`, or the end of the pause).

Called by proxy.worker.node_pauses; the same nodes are paused in all workers.
"""
from functools import partial

from libc.stdint cimport int64_t

from proxy.forward.backend cimport BACKEND_BACKOFF, BACKEND_CLOSED, BACKEND_CONNECTING, BACKEND_IDLE, Backend
from proxy.forward.blocked cimport Blocking
from proxy.forward.client cimport Client
from proxy.forward.datapath cimport DataPath
from proxy.forward.leg cimport Leg
from proxy.forward.node cimport Node, Pool
from proxy.forward.router cimport Router

cdef enum:
    AT_ONCE = 128               # clients that go on in one turn of the loop

cdef int64_t PATIENCE_NS = 500_000_000  # what was held waits so long for what was blocked before it ...
LOOK_S = 0.001                          # ... and looks so often
OTHERS_S = 0.02                         # ... but at least so long: other workers hear of its end a little later


def set_paused(DataPath path not None, nodes):
    """These nodes of the topology, and no others, are paused from now on; what waits for others goes on.

    Also to be called when the topology has changed: what waits may have another owner.
    """
    cdef Router router = path.exchange.router
    cdef Node node
    cdef set wanted = set(nodes)
    cdef list begun = [], ended = []
    router.reactor.tick()
    for node in router.nodes.values():
        if node.paused != (node in wanted):
            node.paused = not node.paused
            (begun if node.paused else ended).append(node)
    if path.exchange.parking.gated != (len(wanted) > 0):
        path.exchange.parking.gated = not path.exchange.parking.gated
        path.exchange.full += 1 if wanted else -1
    router.forget_direct()
    for node in begun:
        begin(path, node)
    for node in ended:
        reconnect(path, node)
        for pool in node.pools():
            (<Pool> pool).down_since_ns = 0
    path.exchange.parking.wake_soon()
    blocked = [client for client in path.clients if (<Client> client).wait is not None]
    rest = partial(go_on, path, blocked, [], list(path.gated)[::-1], router.reactor.now + PATIENCE_NS)
    if blocked:
        rest()
    elif path.gated:
        router.reactor.loop.call_later(OTHERS_S, rest)


cdef void begin(DataPath path, Node node):
    cdef Backend b
    path.exchange.router.unsettle(node, True)       # whose commands are under way there: none of them is overtaken
    for b in node.backends():
        if b.state == BACKEND_CONNECTING or b.state == BACKEND_BACKOFF:
            b.state = BACKEND_IDLE if b.pool is not None and b.pool.owner is None else BACKEND_CLOSED
            b.start_over()
    suspend(path, node, [client for client in path.clients if (<Client> client).wait is not None])


def suspend(DataPath path not None, Node node not None, list blocked not None):
    """Has what blocks at the node ended there, some of it in each turn of the loop."""
    cdef Client client
    cdef int _
    path.reactor.tick()
    for _ in range(AT_ONCE):
        if not blocked or not node.paused:
            return
        client = blocked.pop()
        if client.wait is not None:
            (<Blocking> client.wait).suspend(node)
    path.reactor.loop.call_soon(partial(suspend, path, node, blocked))


def reconnect(DataPath path not None, Node node not None):
    """Has the connections made that clients share, where there were some, and those in RESP2."""
    cdef Pool pool
    cdef Backend b
    path.exchange.router.fill(node, 2, 0)           # it may have come back with another address
    for pool in node.shared_pools():
        for b in pool.backends:
            b.demand()


def pending(Node node not None):
    """Commands that were sent to the node, or are about to be, and are not answered."""
    cdef Backend b
    cdef size_t n = 0
    for b in node.backends():
        n += b.pending
    return n


def held(DataPath path not None):
    """Clients whose next command is for a paused node."""
    return len(path.gated)


cdef bint on_its_way(Client client) noexcept:
    """Whether its blocking command is about to be sent: its connection is being made, or a question not answered."""
    cdef Leg leg
    if client.wait is not None:
        for leg in (<Blocking> client.wait).legs:
            if leg.held and leg.questions or leg.r != NULL and leg.lease is not None and (
                leg.lease.state == BACKEND_CONNECTING
            ):
                return True
    return False


def go_on(DataPath path not None, list blocked not None, list begun not None, list gated not None, int64_t until_ns):
    """Each of these clients looks where it would go now, some in each turn of the loop, the last one first.

    Those that are blocked go first: what was held came behind them, and XREAD with $ is not to miss it. begun: of them,
    who have looked. until_ns: how long the others wait for theirs to be sent (CLOCK_MONOTONIC).
    """
    cdef Client client
    cdef Leg leg
    cdef int _
    path.reactor.tick()
    for _ in range(AT_ONCE):
        if blocked:
            client = blocked.pop()
            begun.append(client)
            if client.wait is not None:
                for leg in list((<Blocking> client.wait).legs):
                    if leg.held and leg.timer is not None:
                        leg.timer.cancel()
                        leg.retry()
            if not blocked:
                path.reactor.loop.call_later(OTHERS_S, partial(go_on, path, blocked, begun, gated, until_ns))
                return
        elif begun:
            if gated and path.reactor.now < until_ns and on_its_way(begun[len(begun) - 1]):
                path.reactor.loop.call_later(LOOK_S, partial(go_on, path, blocked, begun, gated, until_ns))
                return
            begun.pop()
        elif gated:
            client = gated.pop()
            if client in path.gated:
                path.let_go(client)
                client.held_back = False
                client.room()
        else:
            return
    path.reactor.loop.call_soon(partial(go_on, path, blocked, begun, gated, until_ns))
