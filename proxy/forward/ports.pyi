from proxy.forward.reactor import Peer

class Origin(Peer):
    """Where replies go: a client."""

class Recovery:
    """What becomes of a request that a backend cannot simply answer: Retry."""
