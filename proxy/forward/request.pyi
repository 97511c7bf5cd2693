def live() -> int:
    """Requests in use, of all data paths of the process: for tests, which see by it that each is given back."""
