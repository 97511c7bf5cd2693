"""Commands that block the connection on which they are sent."""
from proxy.forward.call cimport Call
from proxy.forward.client cimport Client

cdef int block(Client client, Call* call) noexcept
