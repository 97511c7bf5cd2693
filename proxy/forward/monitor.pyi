from proxy.forward.datapath import DataPath

class Monitor:
    """What MONITOR shows of this worker's clients. Costs nothing while it does not watch."""

    def __init__(self, path: DataPath) -> None: ...
    @property
    def active(self) -> bool:
        """Whether it watches."""
    @property
    def dropped(self) -> int:
        """Lines ever that there was no room for."""
    def watch(self, wanted: bool) -> None:
        """Commands from now on are written down, or are not."""
    def take(self) -> tuple[bytes, int]:
        """(lines, how many) since it was called last: whole ones, each with its CRLF; 4 MB at most."""
