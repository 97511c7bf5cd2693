from proxy.forward.router import Router

class Pulse:
    """Finds out whether the nodes that clients' own connections lead to are alive; see pulse.pyx."""

    def __init__(self, router: Router) -> None: ...
    def beat(self) -> None:
        """To be called once a second. Its time is linear in the connections of clients that track."""
