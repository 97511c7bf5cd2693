from proxy.forward.datapath import DataPath

def look(path: DataPath, patience_s: float = 3.0) -> None:
    """Ends the waits whose node lost its role so long ago and does not say so itself; to be called regularly."""
