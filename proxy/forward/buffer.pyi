def trim() -> None:
    """Gives free heap memory back to the system when there is much of it; to be called every few seconds."""
