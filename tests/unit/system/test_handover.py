"""What passes from a main process to its successor, in a variable of the environment."""

from __future__ import annotations

import pytest

from proxy.system.handover import Handover, read, seeds_word, some_ids, written


def test_it_comes_as_it_was_written() -> None:
    told = Handover(((4711, 99), (4712, 100)), True, 16384, ("ab12",), seeds_word(["a:1"]))
    assert read(written(told)) == told
    assert read(written(Handover())) == Handover()


@pytest.mark.parametrize("text", ["", "1", "{", "[]", '{"slots":"x"}', '{"processes":[1]}', "\udcff"])
def test_what_nobody_has_written(text: str) -> None:
    assert read(text) == Handover()


def test_one_of_another_version() -> None:
    assert read('{"works":true,"more":[1]}') == Handover(works=True)


def test_a_large_cluster_and_one_that_calls_itself_anything() -> None:
    ids = [f"{number:040x}" for number in range(1000)]
    assert some_ids(["", "a b", "\u00e4", "x" * 65, "a,b\0", *ids]) == tuple(ids[:100])
    assert len(written(Handover(nodes=some_ids(ids)))) < 8192


def test_the_seeds() -> None:
    assert seeds_word(["a:1", "b:2"]) == seeds_word(["b:2", "a:1", "b:2"]) != seeds_word(["a:1"])
