from typing import Protocol

class ScriptKeeper(Protocol):
    """Who remembers scripts; the calls come from the data path and must not block. sha: 40 lower-case hex digits."""

    def seen(self, body: bytes, remember: bool) -> bytes:
        """A client runs this script; its sha. remember: not merely asked for that."""
    def load(self, sha: bytes) -> bytes | bool | None:
        """The SCRIPT LOAD command for a script; None: nobody knows it; False: asked, see Parking.script_answered."""
    def in_vain(self, sha: bytes) -> None:
        """A node that has been given this script says again that it has none."""

class Scripts:
    """One per worker, made by Exchange."""

    keeper: ScriptKeeper | None
    def forget(self) -> None:
        """Whoever remembers has lost some, or all: what clients run from now on is told again."""

def script_sha(frame: bytes) -> bytes | None:
    """The name of the script in an EVALSHA or EVALSHA_RO, as the client spelt it; for tests."""
