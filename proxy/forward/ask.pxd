"""What proxy.serve asks of the servers for one command of a client."""
from proxy.forward.call cimport Call
from proxy.forward.client cimport Client

cdef class Ask:
    cdef readonly list parts
    cdef readonly object finish
    cdef readonly bint read

cdef void send_ask(Client client, Call* call, Ask ask)
