"""Through the proxy, a cluster answers generated sequences of commands as one server does: a short run.

`make differential` is the long one. A failure prints the smallest sequence found and the seed that makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.differential.differences import ALLOWED, EXCLUDED, NOT_YET, OF_CLUSTERS, excluded
from tests.differential.frames import parse, plain
from tests.differential.play import Fleet, Pair
from tests.differential.run import WAYS, compare, maker_for
from tests.differential.sequences import Sequence, Step

SEQUENCES = {1: 120, 2: 40}  # by workers
SEED = 9


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way[0]}-{way[1]}")
def pair(server: str, request: pytest.FixtureRequest) -> Iterator[tuple[Pair, int]]:
    workers, reads = request.param
    with Fleet(server, workers, reads) as started:
        yield started, workers


def test_sequences_are_answered_as_by_one_server(pair: tuple[Pair, int]) -> None:
    playing, workers = pair
    played, found = compare(playing, SEED + workers, range(SEQUENCES[workers]))
    assert not found, "\n".join(map(str, found))
    assert played == SEQUENCES[workers]


def test_the_same_seed_makes_the_same_sequence(pair: tuple[Pair, int]) -> None:
    maker = maker_for(pair[0])
    assert maker.make(1, 2) == maker.make(1, 2)
    assert maker.make(1, 2) != maker.make(1, 3)


def test_a_difference_is_found_and_made_small(pair: tuple[Pair, int]) -> None:
    playing, _ = pair
    maker = maker_for(playing)
    steps = maker.make(3, 1).steps
    # CLUSTER INFO is excluded because it differs.
    steps = tuple(replace(step, closes=False) for step in steps if not step.closes)
    wrong = Step((b"CLUSTER", b"INFO"))
    found = playing.first_difference(Sequence("by hand", (*steps, wrong, *steps), "cuts"))
    assert found is not None
    small = playing.smallest(found)
    assert [step.words for step in small.sequence.steps] == [wrong.words]
    assert "CLUSTER INFO" in str(small)


def test_every_command_is_served(pair: tuple[Pair, int]) -> None:
    assert pair[0].unserved() == NOT_YET.keys() & pair[0].commands.keys()


def test_what_may_differ_has_its_reason() -> None:
    assert all([*EXCLUDED.values(), *NOT_YET.values()])
    assert all(map(excluded, NOT_YET))
    assert all(reason for *_, reason in [*ALLOWED, *OF_CLUSTERS])
    assert excluded("cluster|info")
    assert not excluded("client|id")


def test_frames_are_read_whole() -> None:
    frame = b"%2\r\n+a\r\n*2\r\n:1\r\n$-1\r\n$1\r\nb\r\n~1\r\n,1.5\r\n"
    assert plain(parse(frame)) == {b"a": [1, None], b"b": [b"1.5"]}
