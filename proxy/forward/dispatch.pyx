# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What is done with each class of command: a table from class to function.

A function carries the call out, or says that it must wait (CALL_NOT_NOW: a barrier) before it has done anything. What
is more than a forward is asked of `DataPath.responder` (proxy.serve): see answer.
"""
cimport cython
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from proxy.commands.keys cimport KEYS_OK, asks_to_block, find_keys
from proxy.commands.lookup cimport (
    CLASS_ANY, CLASS_BLOCKING, CLASS_FORWARD, CLASS_LOCAL, CLASS_PING, CLASS_PUBLISH, CLASS_REFUSED, CLASS_SCRIPT,
    CLASS_SPLIT_MGET, CLASS_SPLIT_MSET, CLASS_SPLIT_SUM, CLASS_TRANSACTION, CLASS_UNSERVED, CMD_BLOCKING, CMD_KNOWN,
    CMD_NO_AUTH, CMD_SUBSCRIBED,
)
from proxy.forward.answer cimport ask_serve, refuse
from proxy.forward.blocking cimport block
from proxy.forward.call cimport (
    CALL_DONE, CALL_NOT_NOW, SLOT_CROSS, SLOT_NO_MEMORY, SLOT_NONE, Call, find_slot,
)
from proxy.forward.client cimport Client
from proxy.forward.counters cimport CLOSE_CROSS_PROTOCOL, CLOSE_ERROR
from proxy.forward.gather cimport (
    Combine, Gather, combine_array, combine_first, combine_sum, gather_begin, gather_new,
)
from proxy.forward.hold cimport hold, is_paused
from proxy.forward.node cimport Node
from proxy.forward.ports cimport Outlet
from proxy.forward.prepare cimport gate, must_wait, new_request
from proxy.forward.request cimport TARGET_ANY, TARGET_SLOT, Request
from proxy.forward.scripts cimport slot_of_function, slot_of_sha
from proxy.forward.split cimport Plan, plan_trim, split_plan
from proxy.forward.transaction cimport control, inside

cdef extern from "strings.h" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)

cdef enum:
    CLASSES = 16
    COST_PYTHON = 16        # units of a turn: as much as an answer of proxy.serve takes at least

cdef const char* PONG = b"+PONG\r\n"
cdef const char* CROSSSLOT = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"
cdef enum:
    PONG_LEN = 7
    CROSSSLOT_LEN = 56

ctypedef int (*Handler)(Client client, Call* call) noexcept


@cython.final
cdef class Dispatch(Dispatcher):
    """The one dispatcher there is; without a state."""

    cdef int dispatch(self, Outlet outlet, Call* call) noexcept:
        cdef Client client = <Client> outlet
        cdef int arity = call.row.arity
        if not client.authenticated and not call.row.flags & CMD_NO_AUTH:
            return refuse(client, call, "noauth")
        if call.row.flags & CMD_KNOWN and (
            call.argc != <size_t> arity if arity > 0 else call.argc < <size_t> -arity
        ):
            return refuse(client, call, "arity") if client.transaction is None else inside(client, call, False)
        if client.subscriber is not None and client.proto == 2 and not call.row.flags & CMD_SUBSCRIBED:
            if not call.row.flags & CMD_KNOWN:
                return ask_serve(client, call, client.path.responder.unknown, ())
            return refuse(client, call, "subscribed")
        if client.path.paused and is_paused(client.path.paused, call.row):
            return hold(client)
        if client.transaction is not None:
            return inside(client, call, True)
        return HANDLERS[call.row.klass](client, call)


# -- forwarded ---------------------------------------------------------------------------------------------------------

cdef int forward(Client client, Call* call) noexcept:
    """By the slot of its keys; any primary when this call has none."""
    cdef int slot
    if not call.row.flags & CMD_KNOWN and is_http(call):
        return attacked(client)
    slot = find_slot(call)
    if slot == SLOT_CROSS:
        client.replies.say(call.row.metric, CROSSSLOT, CROSSSLOT_LEN)
        return CALL_DONE
    if slot == SLOT_NO_MEMORY:
        client.close(CLOSE_ERROR)
        return CALL_DONE
    if call.row.flags & CMD_BLOCKING and asks_to_block(call.frame, call.args, call.argc):
        return block(client, call)
    return send_on(client, call)


cdef int forward_anywhere(Client client, Call* call) noexcept:
    """Keyless: one primary answers for all."""
    call.slot = SLOT_NONE
    return send_on(client, call)


cdef int publish(Client client, Call* call) noexcept:
    """To the primary of slot 0, from which the workers hear of messages (worker.upstream): who publishes has its answer
    when the subscribers of this proxy have the message, as with one server; and what one client publishes keeps its
    order."""
    cdef uint32_t home = client.path.exchange.router.home(0)
    cdef Node node
    if client.path.exchange.full:
        node = client.path.exchange.router.primary_of(0)
        if node is not None and node.paused:
            gate(client)                    # the workers hear of messages there again when it is paused no more
            return CALL_NOT_NOW
    if home and home != client.served_by:
        if client.served_by and client.replies.inflight:
            return CALL_NOT_NOW             # what it published there must not be overtaken
        client.served_by = home
    call.slot = SLOT_NONE
    return send_on(client, call)


cdef inline int send_on(Client client, Call* call) noexcept:
    """As it came, to where its slot says."""
    cdef Request* r
    if client.path.exchange.full and must_wait(client, call, call.slot):
        return CALL_NOT_NOW
    r = new_request(client, call)
    if r == NULL:
        return CALL_DONE
    if r.target == TARGET_ANY:
        client.path.exchange.submit(r, call.frame, call.n)
        client.served_by = client.path.exchange.router.served_by
    else:
        client.path.exchange.submit(r, call.frame, call.n)
    return CALL_DONE


cdef int run_script(Client client, Call* call) noexcept:
    """By the slot of its keys; without any, to the primary that owns its script's slot, or else to any."""
    cdef Request* r
    cdef int home, slot = find_slot(call)
    if slot == SLOT_CROSS:
        client.replies.say(call.row.metric, CROSSSLOT, CROSSSLOT_LEN)
        return CALL_DONE
    if slot == SLOT_NO_MEMORY:
        client.close(CLOSE_ERROR)
        return CALL_DONE
    home = see_script(client, call, slot == SLOT_NONE)
    if slot != SLOT_NONE or home < 0:
        return send_on(client, call)
    if client.path.exchange.full and must_wait(client, call, SLOT_NONE):
        return CALL_NOT_NOW
    r = new_request(client, call)
    if r != NULL:
        r.node = client.path.exchange.router.home(home)
        client.path.exchange.submit(r, call.frame, call.n)
    return CALL_DONE


cdef int see_script(Client client, const Call* call, bint keyless) noexcept:
    """Has the body of an EVAL remembered; the script's own slot if `keyless` asks for it, -1 = it has none.

    Also for what is only queued (a transaction's): it is found there when the transaction is sent.
    """
    cdef const char* p
    cdef size_t n
    cdef int slot
    if call.argc < 2:
        return -1
    p = call.frame + call.args[1].off
    n = call.args[1].len
    if call.row.name[0] == c"f":                                    # fcall, fcall_ro
        return slot_of_function(p, n) if keyless else -1
    if call.row.name_len != 4 and call.row.name[4] != c"_":         # neither eval nor eval_ro
        return slot_of_sha(p, n) if keyless else -1
    slot = client.path.exchange.scripts.body(p, n, keyless, client.reactor.now)
    if client.path.exchange.scripts.called:
        client.budget -= COST_PYTHON
    return slot


# -- split by slot -----------------------------------------------------------------------------------------------------

cdef int split_array(Client client, Call* call) noexcept:
    """MGET."""
    return split(client, call, False, combine_array)


cdef int split_pairs(Client client, Call* call) noexcept:
    """MSET."""
    if call.argc % 2 == 0:
        return refuse(client, call, "arity")
    return split(client, call, True, combine_first)


cdef int split_sum(Client client, Call* call) noexcept:
    """DEL, UNLINK, EXISTS, TOUCH."""
    return split(client, call, False, combine_sum)


cdef int split(Client client, Call* call, bint pairs, Combine combine) noexcept:
    """One sub-command per slot; a command whose keys share one slot stays what it is: atomic."""
    cdef Plan* plan = &client.path.plan
    cdef Gather g
    cdef Request* parent
    cdef size_t nkeys
    cdef uint32_t i, n
    if find_keys(call.row, call.frame, call.args, call.argc, call.keys) != KEYS_OK or not split_plan(
        plan, pairs, call.frame, call.args, call.keys
    ):
        client.close(CLOSE_ERROR)
        return CALL_DONE
    if plan.nparts == 1:
        call.slot = plan.parts[0].slot
        return send_on(client, call)
    nkeys = call.keys.n
    n = plan.nparts
    if client.path.exchange.full:
        for i in range(n):
            if must_wait(client, call, plan.parts[i].slot):
                plan_trim(plan)
                return CALL_NOT_NOW
    g = gather_new(client.replies, n, <uint32_t> nkeys, combine)
    if g is None:
        client.close(CLOSE_ERROR)
        return CALL_DONE
    memcpy(g.part_of, plan.part_of, nkeys * sizeof(uint32_t))
    parent = new_request(client, call)
    if parent == NULL:
        g.discard()
        return CALL_DONE
    gather_begin(g, parent)
    client.path.counts.splits[call.row.metric] += 1
    client.budget -= <int> n
    for i in range(n):
        g.parts[i].target = TARGET_SLOT
        g.parts[i].slot = plan.parts[i].slot
    for i in range(n):                      # the last part may complete, and end, the gather
        client.path.exchange.submit(&g.parts[i], plan.bytes.data + plan.parts[i].off, plan.parts[i].len)
    plan_trim(plan)
    return CALL_DONE


# -- answered here -----------------------------------------------------------------------------------------------------

cdef int ping(Client client, Call* call) noexcept:
    cdef bytes word
    if client.subscriber is not None and client.proto == 2 and call.argc <= 2:
        word = call.frame[call.args[1].off:call.args[1].off + call.args[1].len] if call.argc == 2 else b""
        client.say(call.row.metric, b"*2\r\n$4\r\npong\r\n$%d\r\n%b\r\n" % (len(word), word))
    elif call.argc == 1:
        client.replies.say(call.row.metric, PONG, PONG_LEN)
    elif call.argc == 2:
        word = call.frame[call.args[1].off:call.args[1].off + call.args[1].len]
        client.say(call.row.metric, b"$%d\r\n%b\r\n" % (len(word), word))
    else:
        return refuse(client, call, "arity")
    return CALL_DONE


cdef int local(Client client, Call* call) noexcept:
    """Answered by proxy.serve."""
    return ask_serve(client, call, client.path.responder.answer, ())


cdef int refuse_forbidden(Client client, Call* call) noexcept:
    return refuse(client, call, "refused")


cdef int refuse_unserved(Client client, Call* call) noexcept:
    return refuse(client, call, "unserved")


cdef inline bint is_word(const Call* call, const char* lower, size_t n) noexcept nogil:
    return call.args[0].len == n and strncasecmp(call.frame + call.args[0].off, lower, n) == 0


cdef bint is_http(const Call* call) noexcept nogil:
    """A browser made to speak to us: Redis treats these two as an attack (server.c, securityWarningCommand)."""
    return is_word(call, b"post", 4) or is_word(call, b"host:", 5)


cdef int attacked(Client client) noexcept:
    client.close(CLOSE_CROSS_PROTOCOL)
    try:
        client.path.responder.attacked(client.address)
    except Exception as error:
        client.path.counts.internal_errors += 1
        client.path.responder.raised("attacked", error)
    return CALL_DONE


cdef Handler[CLASSES] HANDLERS
cdef int _klass
for _klass in range(CLASSES):
    HANDLERS[_klass] = local
HANDLERS[<int> CLASS_FORWARD] = forward
HANDLERS[<int> CLASS_ANY] = forward_anywhere
HANDLERS[<int> CLASS_PING] = ping
HANDLERS[<int> CLASS_PUBLISH] = publish
HANDLERS[<int> CLASS_SCRIPT] = run_script
HANDLERS[<int> CLASS_LOCAL] = local
HANDLERS[<int> CLASS_SPLIT_MGET] = split_array
HANDLERS[<int> CLASS_SPLIT_MSET] = split_pairs
HANDLERS[<int> CLASS_SPLIT_SUM] = split_sum
HANDLERS[<int> CLASS_TRANSACTION] = control
HANDLERS[<int> CLASS_BLOCKING] = block
HANDLERS[<int> CLASS_REFUSED] = refuse_forbidden
HANDLERS[<int> CLASS_UNSERVED] = refuse_unserved
