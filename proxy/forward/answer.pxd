"""Answers that proxy.serve gives or words."""
from proxy.forward.call cimport Call
from proxy.forward.client cimport Client

cdef int ask_serve(Client client, Call* call, object method, tuple more) noexcept
cdef int refuse(Client client, Call* call, str why) noexcept
cdef list words_of(const Call* call)
