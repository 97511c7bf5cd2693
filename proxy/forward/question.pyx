# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A command of the proxy's own for one node, sent among its clients' on the connection they share.

Why: what the proxy shows of the nodes (INFO) is asked once for many clients, must not wait as long as a client's
command may, and goes on when the client that began it leaves. Made by proxy.serve.node_infos.

A question is answered once, with the reply (an error line of the node's, or of ours when it was lost or not answered
in time) or with None when that is too long. It is no client's: nothing of it is counted in anybody's memory, and a
reply is bounded by `most`.
"""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t

from proxy.forward.backend cimport BACKEND_UP, Backend
from proxy.forward.connections cimport CHOSEN
from proxy.forward.exchange cimport Exchange
from proxy.forward.node cimport Node
from proxy.forward.pipeline cimport ENQUEUED
from proxy.forward.ports cimport Sink
from proxy.forward.reactor cimport monotonic_ns
from proxy.forward.request cimport (
    REQ_READ, STATE_ANSWERED, TARGET_NODE, Request, request_free, request_hold, request_move, request_new,
    request_unhold,
)


@cython.final
@cython.no_gc
cdef class Question(Sink):
    """See the module. It lives until it is answered; states: asked (done set) -> answered."""

    cdef object done
    cdef object raised
    cdef size_t most
    cdef bint too_long

    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept:
        cdef object reply = None
        if n and not self.too_long:
            if r.hold_len + n > self.most or not request_hold(r, p, n):
                self.too_long = True
                request_unhold(r)
        if not final:
            return
        request_move(r, STATE_ANSWERED)
        try:
            if not self.too_long:
                reply = PyBytes_FromStringAndSize(r.hold, <Py_ssize_t> r.hold_len)
            request_free(r)
            done, self.done = self.done, None
            done(reply)
        except Exception as problem:
            self.raised("question", problem)
        self.done = self.raised = None
        Py_DECREF(self)

    cdef void withdraw(self, Request* r) noexcept:
        request_unhold(r)
        self.too_long = False

    cdef bint alive(self) noexcept:
        return True


def ask_node(Exchange exchange not None, Node node not None, bytes frame not None, *, int proto, int64_t timeout_ns,
             size_t most, done, raised, bint through=False):
    """Sends a command that only reads to a node.

    done(reply or None): called once, at the latest a sweep after timeout_ns; perhaps before this returns. raised(what,
    error): done has raised. MemoryError. through: to a paused node, too; else that one does not answer.
    """
    cdef Question q = Question.__new__(Question)
    cdef Request* r = request_new()
    if r == NULL:
        raise MemoryError
    q.done = done
    q.raised = raised
    q.most = most
    q.too_long = False
    r.sink = <void*> q
    r.start_ns = monotonic_ns()
    r.deadline_ns = r.start_ns + timeout_ns
    r.target = TARGET_NODE
    r.node = node.number
    r.slot = -1
    r.proto = <unsigned char> proto
    r.flags = REQ_READ
    r.len = len(frame)
    Py_INCREF(q)
    if not node.paused:
        exchange.submit(r, frame, len(frame))
    elif (
        not through or exchange.router.shared(node, proto, 0, 0) != CHOSEN
        or (<Backend> exchange.router.chosen).state != BACKEND_UP
        or (<Backend> exchange.router.chosen).enqueue(r, frame, len(frame)) != ENQUEUED
    ):
        exchange.fail(r, exchange.text_down)
