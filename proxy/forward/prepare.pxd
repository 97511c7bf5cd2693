"""Requests made of calls."""
from proxy.forward.call cimport Call
from proxy.forward.client cimport Client
from proxy.forward.request cimport Request

cdef Request* new_request(Client client, const Call* call) noexcept
cdef void aim(Request* r, Client client, const Call* call, int slot) noexcept
cdef bint must_wait(Client client, const Call* call, int slot) noexcept
cdef void gate(Client client) noexcept
