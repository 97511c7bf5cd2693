from proxy.forward.client import Client
from proxy.forward.datapath import ClientSettings, DataPath

def accept(path: DataPath, fd: int, settings: ClientSettings, address: str, local_address: str) -> Client:
    """Takes a connected non-blocking descriptor and serves it; raises OSError when epoll refuses it."""

def output_bytes(path: DataPath) -> int:
    """Reply bytes held for all clients."""

def close_idle(path: DataPath, idle_s: float) -> None:
    """Closes clients that have sent nothing for idle_s seconds and wait for nothing."""

def close_all(path: DataPath) -> None:
    """Closes every client at once."""
