"""A node's breaker by itself: what opens and closes it, and what it forgets."""

from __future__ import annotations

from proxy.worker.breaker import Breakers, backoff


def test_the_pause_doubles_up_to_its_maximum_and_is_jittered() -> None:
    for failures, longest_s in ((1, 0.05), (2, 0.1), (4, 0.4), (7, 2.0), (10_000, 2.0)):
        pauses = [backoff(failures, 0.05, 2.0) for _ in range(200)]
        assert longest_s / 2 <= min(pauses) < longest_s * 0.7
        assert longest_s * 0.8 < max(pauses) <= longest_s


def test_a_node_without_trouble_has_none() -> None:
    breakers = Breakers()
    assert breakers.open("a:1") is None
    breakers.reached("a:1")
    breakers.proved("a:1")
    breakers.forget("a:1")
    assert breakers.open("a:1") is None


def test_a_success_closes_it_and_a_connection_that_lives_ends_the_count() -> None:
    breakers = Breakers()
    breakers.failed("a:1")
    breakers.failed("a:1")  # of the same moment
    opened = breakers.open("a:1")
    assert opened is not None
    assert opened.failures == 1
    breakers.failed("a:1", probe=True)
    assert opened.failures == 2
    assert breakers.open("b:1") is None
    breakers.reached("a:1")
    assert breakers.open("a:1") is None
    breakers.failed("a:1")  # lost as soon as it was made: the pauses go on growing
    assert (breakers.open("a:1"), opened.failures) == (opened, 3)
    breakers.proved("a:1")  # of a connection from before: it is down all the same
    assert breakers.open("a:1") is opened
    breakers.reached("a:1")
    breakers.proved("a:1")
    breakers.failed("a:1")
    assert breakers.open("a:1") is not opened


def test_new_settings_let_everybody_go() -> None:
    breakers = Breakers()
    breakers.failed("a:1")
    opened = breakers.open("a:1")
    breakers.clear()
    assert breakers.open("a:1") is None
    assert opened is not None
    assert not opened.open  # whoever waits for a turn sees it
