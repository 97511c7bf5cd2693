"""Redis's glob patterns."""
from libc.stdint cimport int64_t, uint8_t

cdef class Glob:
    cdef int* steps             # a byte's value, or what the module says
    cdef Py_ssize_t n
    cdef uint8_t* sets          # 32 bytes each
    cdef int64_t taken
    cdef void compile(self, const char* p, Py_ssize_t size) noexcept
    cdef Py_ssize_t compile_set(self, const char* p, Py_ssize_t size, Py_ssize_t i, uint8_t* bits) noexcept
    cdef int64_t match(self, const char* key, Py_ssize_t size, int64_t budget) noexcept
