"""What is done with each class of command."""
from proxy.forward.call cimport Dispatcher

cdef class Dispatch(Dispatcher):
    pass
