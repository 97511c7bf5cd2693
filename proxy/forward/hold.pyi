from proxy.forward.datapath import DataPath

def pause(path: DataPath, level: int, until_ns: int) -> None:
    """What is held from now on, in the place of what was: 0 nothing, 1 what may write, 2 everything.

    until_ns: of time.monotonic_ns(); clients then go on by themselves.
    """

def paused(path: DataPath) -> tuple[int, int]:
    """(level, until_ns) in force; (0, 0) when nothing is held."""

def held(path: DataPath) -> int:
    """Clients whose next command waits for the end of a pause, or for their turn after it."""
