"""A command as it was read, and who decides what becomes of it."""
from proxy.commands.keys cimport KeyList
from proxy.commands.lookup cimport Command
from proxy.forward.ports cimport Outlet
from proxy.resp.scanner cimport Arg

cdef struct Call:
    const Command* row
    const char* frame       # the whole command as it came
    size_t n
    const Arg* args         # spans in the frame
    size_t argc
    KeyList* keys           # room for its key positions, shared by all calls
    int slot                # of its keys, once found: find_slot(); -1 = it has none

cdef enum Slots:
    SLOT_NONE = -1
    SLOT_CROSS = -2         # keys in more than one slot
    SLOT_NO_MEMORY = -3

cdef enum CallResult:
    CALL_DONE = 0           # carried out, refused, or the client is closed
    CALL_NOT_NOW = 1        # it must wait until everything its client has under way is answered; nothing was done
    CALL_LATER = 2          # it must wait for its client's turn at Python (Reactor.late); nothing was done

cdef class Dispatcher:
    cdef int dispatch(self, Outlet client, Call* call) noexcept

cdef int find_slot(Call* call) noexcept nogil
