# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Which shard owns each slot, as one flat C array the data path indexes.

forward.router reads `owner` per command, sets a slot when a node answers MOVED, and loads a whole new table when a
topology is published. Shards are numbered by whoever fills the table.

Invariant: covered is the number of slots whose owner is not NO_SHARD. Slots or shards out of range change nothing.
"""
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from proxy.cluster.slot cimport SLOTS


cdef class SlotTable:
    def __cinit__(self):
        self.clear()

    cdef void set(self, int slot, int shard) noexcept nogil:
        if slot < 0 or slot >= SLOTS or shard < 0 or shard > NO_SHARD:
            return
        self.covered += (shard != NO_SHARD) - (self.owner[slot] != NO_SHARD)
        self.owner[slot] = <uint16_t>shard

    def assign(self, int first, int last, shard):
        """Give the slots first to last, both included, to a shard, or to none (None)."""
        cdef int index = NO_SHARD if shard is None else shard
        cdef int slot
        if not 0 <= first <= last < SLOTS:
            raise ValueError(f"no slot range: {first}-{last}")
        if shard is not None and not 0 <= index < NO_SHARD:
            raise ValueError(f"no shard index: {shard}")
        for slot in range(first, last + 1):
            self.set(slot, index)

    def get(self, int slot):
        """The index of the shard that owns a slot, None when none does."""
        if not 0 <= slot < SLOTS:
            raise ValueError(f"no slot: {slot}")
        return None if self.owner[slot] == NO_SHARD else self.owner[slot]

    def clear(self):
        """Leave all slots without an owner."""
        memset(self.owner, 0xFF, sizeof(self.owner))
        self.covered = 0

    def load(self, bytes owners not None, int shards):
        """Replaces the whole table; a fault leaves it as it was. Takes some microseconds.

        owners: 16,384 little-endian uint16, the shard of each slot, NO_SHARD = nobody. shards: how many there are.
        Raises ValueError when owners has another length or names a shard that does not exist.
        """
        cdef const uint8_t* given = owners
        cdef uint16_t own[SLOTS]
        cdef int slot, covered = 0
        cdef unsigned int largest = 0, owner
        if len(owners) != sizeof(own):
            raise ValueError(f"owners of slots are {sizeof(own)} bytes, not {len(owners)}")
        if not 0 <= shards <= NO_SHARD:
            raise ValueError(f"no number of shards: {shards}")
        for slot in range(SLOTS):
            owner = given[2 * slot] | <unsigned int> given[2 * slot + 1] << 8
            own[slot] = <uint16_t> owner
            if owner != NO_SHARD:
                covered += 1
                if owner > largest:
                    largest = owner
        if covered and largest >= <unsigned int> shards:
            raise ValueError(f"no shard index: {largest} of {shards}")
        memcpy(self.owner, own, sizeof(own))
        self.covered = covered

    def ranges(self):
        """[(first, last, shard), ...] of the covered slots, ascending, as long as they can be."""
        cdef list out = []
        cdef int slot, first = 0
        for slot in range(1, SLOTS + 1):
            if slot == SLOTS or self.owner[slot] != self.owner[first]:
                if self.owner[first] != NO_SHARD:
                    out.append((first, slot - 1, self.owner[first]))
                first = slot
        return out
