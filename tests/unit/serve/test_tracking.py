"""CLIENT TRACKING and its kin: what is refused, what is put in force. (What one server says: tests/integration.)"""

from __future__ import annotations

import pytest

from proxy.forward.tracking import Tracking
from proxy.serve import table, tracking
from proxy.serve.context import Answer
from tests.unit.serve.fakes import FakeClient, context

OK = b"+OK\r\n"


def ask(client: FakeClient, *words: bytes | str) -> Answer:
    return table.answer(context(), client, [word.encode() if isinstance(word, str) else word for word in words])


def shown(client: FakeClient, *words: str) -> bytes:
    answer = ask(client, *words)
    assert isinstance(answer, bytes)
    return answer


def on(client: FakeClient, *options: str) -> Answer:
    return ask(client, "CLIENT", "TRACKING", "ON", *options)


def test_on_and_off() -> None:
    client = FakeClient()
    assert on(client, "OPTIN", "noloop") == OK
    assert client.tracking is not None
    assert (client.tracking.optin, client.tracking.noloop, client.tracking.bcast) == (True, True, False)
    assert ask(client, "CLIENT", "GETREDIR") == b":0\r\n"
    assert b" flags=t " in shown(client, "CLIENT", "INFO")
    assert b" redir=0 " in shown(client, "CLIENT", "INFO")
    before = len(client.tracked)
    assert on(client, "NOLOOP", "OPTIN") == OK
    assert len(client.tracked) == before  # the same again changes nothing
    assert ask(client, "CLIENT", "TRACKING", "off") == OK
    assert client.tracking is None
    assert ask(client, "CLIENT", "GETREDIR") == b":-1\r\n"
    assert b" redir=-1 " in shown(client, "CLIENT", "INFO")


def test_not_while_anything_is_under_way() -> None:
    client = FakeClient(pending=1)
    assert ask(client, "CLIENT", "TRACKING", "ON") is None
    assert ask(client, "CLIENT", "TRACKING", "OFF") == OK
    client.tracking = Tracking()
    assert ask(client, "CLIENT", "TRACKING", "OFF") is None
    assert client.tracked == []


def test_no_room() -> None:
    client = FakeClient(room=False)
    assert on(client) == tracking.NO_ROOM
    assert client.tracking is None


@pytest.mark.parametrize("words", [("REDIRECT", "7"), ("BCAST", "REDIRECT", "8", "NOLOOP")])
def test_redirect_is_refused(words: tuple[str, ...]) -> None:
    client = FakeClient()
    assert on(client, *words) == tracking.REDIRECT_UNSERVED
    assert client.tracked == []


def test_two_redirects() -> None:
    assert on(FakeClient(), "REDIRECT", "7", "REDIRECT", "8") == tracking.SEVERAL_REDIRECTS


def test_prefixes_are_bounded() -> None:
    client = FakeClient()
    many = [word for n in range(tracking.PREFIXES) for word in ("PREFIX", f"{n:05}")]
    assert on(client, "BCAST", *many, "PREFIX", "x") == tracking.TOO_MANY_PREFIXES
    assert on(client, "BCAST", "PREFIX", "x" * (tracking.PREFIX_BYTES + 1)) == tracking.TOO_MANY_PREFIXES
    assert on(client, "BCAST", *many) == OK
    assert on(client, "BCAST", "PREFIX", "x") == tracking.TOO_MANY_PREFIXES
    assert client.tracking is not None
    assert len(client.tracking.prefixes) == tracking.PREFIXES


def test_an_overlap_is_shown_as_printf_does() -> None:
    said = ask(FakeClient(), "CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", b"a\0b", "PREFIX", b"a\0bc\r\n")
    assert said == (
        b"-ERR Prefix 'a' overlaps with another provided prefix 'a'. Prefixes for a single client must not overlap.\r\n"
    )


def test_prefixes_add_up() -> None:
    client = FakeClient()
    assert on(client, "BCAST", "PREFIX", "b") == OK
    assert on(client, "BCAST", "PREFIX", "a") == OK
    assert client.tracking is not None
    assert client.tracking.prefixes == (b"a", b"b")
    assert b"$1\r\na\r\n$1\r\nb\r\n" in shown(client, "CLIENT", "TRACKINGINFO")
    assert b" flags=tB " in shown(client, "CLIENT", "INFO")


def test_caching() -> None:
    client = FakeClient(tracking=Tracking(optout=True))
    assert ask(client, "CLIENT", "CACHING", "YES") == tracking.CACHING_YES
    assert not client.cached
    assert ask(client, "CLIENT", "CACHING", "no") == OK
    assert client.cached
    assert b"$10\r\ncaching-no\r\n" in shown(client, "CLIENT", "TRACKINGINFO")
