from proxy.forward.datapath import DataPath

def look(path: DataPath, /) -> None:
    """Ends the waits whose node has lost its role and does not say so itself; to be called every second or so."""
