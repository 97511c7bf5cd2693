from proxy.forward.backend import Backend
from proxy.forward.ports import Outlet

class Client(Outlet):
    """One client; see proxy.serve.context.ClientLike for what its attributes mean."""

    address: str
    local_address: str
    user: str
    name: bytes
    lib_name: bytes
    lib_ver: bytes
    db: int
    authenticated: bool
    no_evict: bool
    no_touch: bool
    redirects: bool
    lease: Backend | None  # a connection of its own, closed with it
    @property
    def id(self) -> int: ...
    @property
    def draining(self) -> bool:
        """Nothing more is read of it: see clients.drain."""
    @property
    def held_back(self) -> bool:
        """Its next command waits for the end of a CLIENT PAUSE."""
    @property
    def half_closed(self) -> bool:
        """It said that it will send nothing more; what it sent before may not be read yet."""
    @property
    def proto(self) -> int: ...
    @property
    def created_s(self) -> float: ...
    @property
    def last_active_s(self) -> float: ...
    @property
    def last_command(self) -> str: ...
    @property
    def total_commands(self) -> int: ...
    @property
    def pending(self) -> int: ...
    @property
    def output_bytes(self) -> int: ...
    @property
    def query_bytes(self) -> int: ...
    @property
    def memory(self) -> int:
        """Bytes held for it in all; see DataPath.client_memory."""
    @property
    def reads(self) -> str: ...
    @property
    def listener_reads(self) -> str: ...
    def set_reads(self, name: str, /) -> None: ...
    def set_proto(self, proto: int, /) -> None: ...
    def set_reply(self, mode: str, /) -> None: ...
    def push(self, frame: bytes, behind: bool = False) -> None:
        """Sends a push, between two replies; behind: not before the replies that have come for it already."""
    def close_after_reply(self) -> None: ...
    def reset(self) -> None: ...
    def kill(self) -> None: ...
    def kill_after_reply(self) -> None: ...
