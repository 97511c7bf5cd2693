# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Answers that proxy.serve gives or words, with what they cost their client. Called by dispatch and transaction.

All of them together have so many milliseconds of each batch; who comes later waits for the next one (CALL_LATER).
"""
from libc.stdint cimport int64_t

from proxy.forward.ask cimport Ask, Later, send_ask, send_later
from proxy.forward.call cimport CALL_DONE, CALL_LATER, CALL_NOT_NOW
from proxy.forward.reactor cimport Reactor, monotonic_ns

cdef enum:
    COST_PYTHON = 16        # units of a turn that an answer of proxy.serve takes at least: some 5 us
    TURN_MOST = 1 << 20
    COST_SHARE = 1 << 14    # ... and that it would take if it used up all of Python's share of the batch
    WORDS_MAX = 20000       # a million words would hold up everybody for a second
    TOO_MANY_LEN = 69

cdef const char* TOO_MANY = b"-ERR too many arguments for a command that the proxy itself answers\r\n"


cdef list words_of(const Call* call):
    """The command's name and arguments."""
    cdef size_t i
    cdef list words = []
    for i in range(call.argc):
        words.append(call.frame[call.args[i].off:call.args[i].off + call.args[i].len])
    return words


cdef int ask_serve(Client client, Call* call, object method, tuple more) noexcept:
    """Answered by what method(client, words, *more) returns: bytes, an Ask, a Later; None = not now.

    An answer that raises is an error for this client and nobody else.
    """
    cdef int metric = call.row.metric
    cdef Reactor reactor = client.reactor
    cdef int64_t began_ns, took_ns
    cdef list words
    if call.argc > WORDS_MAX:
        client.replies.say(metric, TOO_MANY, TOO_MANY_LEN)
        return CALL_DONE
    if reactor.python_ns <= 0 or (reactor.late and not reactor.in_turns):
        return CALL_LATER
    began_ns = monotonic_ns()
    words = words_of(call)
    try:
        answer = method(client, words, *more)
        if client.fd < 0:
            pass                            # closed by its own command
        elif answer is None:
            if client.replies.inflight == 0:
                raise RuntimeError("there is nothing to wait for")
            return CALL_NOT_NOW
        elif isinstance(answer, Ask):
            send_ask(client, call, <Ask> answer)
        elif isinstance(answer, Later):
            send_later(client, call, <Later> answer)
        else:
            client.say(metric, answer)
    except Exception as error:
        client.failed(metric, words[0].decode("ascii", "replace"), error)
    took_ns = monotonic_ns() - began_ns
    reactor.python_ns -= took_ns
    client.budget -= COST_PYTHON + <int> min(took_ns * COST_SHARE // reactor.python_most_ns, <int64_t> TURN_MOST)
    return CALL_DONE


cdef int refuse(Client client, Call* call, str why) noexcept:
    """Answered with an error that proxy.serve words."""
    cdef int metric = call.row.metric
    client.budget -= COST_PYTHON
    name = call.frame[call.args[0].off:call.args[0].off + call.args[0].len]
    sub = call.frame[call.args[1].off:call.args[1].off + call.args[1].len] if (
        call.row.container and call.argc > 1) else None
    try:
        client.say(metric, client.path.responder.refuse(why, call.row.name[:call.row.name_len], name, sub))
    except Exception as error:
        client.failed(metric, name.decode("ascii", "replace"), error)
    return CALL_DONE
