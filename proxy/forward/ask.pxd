"""What proxy.serve asks of the servers for one command of a client."""
from proxy.forward.call cimport Call
from proxy.forward.client cimport Client
from proxy.forward.gather cimport Gather, Rounds

cdef class Ask:
    cdef readonly list parts
    cdef readonly object finish
    cdef readonly bint read
    cdef readonly bint errors
    cdef readonly bint primary
    cdef readonly list labels
    cdef readonly list nodes
    cdef readonly list optional

cdef class Later:
    cdef Gather gather
    cdef object made            # answered before it was in the client's order
    cdef bint barrier

cdef class AskRounds(Rounds):
    cdef Client client

cdef void send_ask(Client client, Call* call, Ask ask)
cdef bint send_parts(Client client, Ask ask, Gather before, Call* call) except? False
cdef void send_later(Client client, Call* call, Later later)
