# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A command as it was read: its row in the command table, its frame and arguments, its keys and slot found once.

Client reads calls and has a Dispatcher carry them out; Dispatch is the one there is. A call lives as long as its
command is being dispatched: nothing may keep a pointer to it or into it.
"""
from proxy.cluster.slot cimport key_slot
from proxy.commands.keys cimport KEYS_NO_MEMORY, KEYS_OK, find_keys


cdef class Dispatcher:
    """Who carries out calls."""

    cdef int dispatch(self, Outlet client, Call* call) noexcept:
        return CALL_DONE


cdef int find_slot(Call* call) noexcept nogil:
    """The slot all its keys share, also left in call.slot; else one of Slots.

    Arguments that do not fit the command's key specs leave it without keys: whichever server gets it says so.
    """
    cdef const Arg* key
    cdef size_t i
    cdef int rc, slot = SLOT_NONE
    if call.row.only_key > 0:
        if <size_t> call.row.only_key < call.argc:
            key = &call.args[call.row.only_key]
            slot = key_slot(call.frame + key.off, key.len)
    elif call.row.only_key < 0:
        rc = find_keys(call.row, call.frame, call.args, call.argc, call.keys)
        if rc == KEYS_NO_MEMORY:
            return SLOT_NO_MEMORY
        if rc == KEYS_OK:
            for i in range(call.keys.n):
                key = &call.args[call.keys.v[i]]
                rc = key_slot(call.frame + key.off, key.len)
                if slot < 0:
                    slot = rc
                elif slot != rc:
                    return SLOT_CROSS
    call.slot = slot
    return slot
