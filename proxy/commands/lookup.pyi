from collections.abc import Collection, Iterable
from typing import TypedDict

from proxy.commands.dispositions import CommandClass, CommandFlag
from proxy.commands.rows import Row

_C_CLASSES: dict[str, int]
_C_FLAGS: dict[str, int]

class CommandFacts(TypedDict):
    """A row of the table; `only_key`: the position of the one key, 0 = no keys, -1 = by key specs (or guessed)."""

    name: str
    klass: CommandClass
    flags: CommandFlag
    arity: int
    only_key: int
    metric: int

class CommandTable:
    """The commands of one kind of server, by name; never changes once built.

    `source` says where the rows come from. `metrics` (name -> index of its counters) is shared by all tables of a
    process: "other" is put in at 0, names not seen before are added until 1024 indexes are taken, names there keep
    theirs; a name that found no place counts as index 0. `allow` names the refused commands the configuration lets
    through ("debug", "cluster failover", "@admin"; a container's name stands for its subcommands), `deny` what it
    refuses, commands of `allow` and unknown ones included.
    Rows with names above 63 bytes are left out. Raises MemoryError.
    """

    source: str

    def __init__(
        self,
        rows: Iterable[Row],
        source: str,
        metrics: dict[str, int],
        allow: Collection[str] = (),
        deny: Collection[str] = (),
    ) -> None: ...
    def __len__(self) -> int:
        """Rows, subcommands included."""

    def refused(self) -> list[bytes]:
        """Full names of what is not let through."""

    def names(self) -> list[str]:
        """Full names, commands first, subcommands behind them."""

    def lookup(self, *args: bytes) -> CommandFacts:
        """The row of the command with these arguments; the name is "" when it is unknown. ValueError without any."""

    def keys(self, *args: bytes) -> list[int] | None:
        """The indexes of the arguments that are keys; None when the arguments do not fit the command."""

    @staticmethod
    def asks_to_block(*args: bytes) -> bool:
        """Whether this XREAD or XREADGROUP may block (has the option BLOCK)."""

def _bench(table: CommandTable, command: tuple[bytes, ...], times: int) -> float: ...
