"""Exceptions of our own code: counted each time, logged once per place."""

from __future__ import annotations

import pytest

from proxy.system.faults import Faults
from proxy.system.log import FIELDS


@pytest.fixture(autouse=True)
def every_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.system.log._limited", {})


def caught(text: str = "x") -> ValueError:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def test_once_per_place(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[int] = []
    faults = Faults(lambda: counted.append(1))
    for n in range(5):
        faults("this", caught(str(n)))
    try:
        int("y")
    except ValueError as error:
        faults("that", error)
    faults("nowhere", ValueError("never raised"))
    assert len(counted) == 7
    shown = [getattr(record, FIELDS) for record in caplog.records]
    assert [fields["where"] for fields in shown] == ["this", "that", "nowhere"]
    assert shown[0]["trace"].startswith("Traceback")
    assert shown[0]["trace"].endswith("ValueError: 0")


def test_counted_already(caplog: pytest.LogCaptureFixture) -> None:
    Faults(lambda: pytest.fail("counted twice")).show("this", caught())
    assert len(caplog.records) == 1
