"""Scripts on their way: bodies told once, names found, keyless calls at one node, NOSCRIPT repaired."""

from __future__ import annotations

import hashlib
import time

import pytest

from proxy.cluster.slot import slot_of
from proxy.forward.scripts import script_sha
from proxy.resp.encode import encode_command
from proxy.resp.readers import CommandReader
from tests.support.datapath import KEY_A, SLOT_A, A, B, C, End, Play, Stage
from tests.support.dialogue import ASKING, EXISTS_A, GET_A, ask, exchange, moved

BODY = b"return redis.call('incr', KEYS[1])"
SHA = hashlib.sha1(BODY).hexdigest().encode()
EVAL = encode_command("EVAL", BODY, 1, KEY_A)
EVALSHA = encode_command("EVALSHA", SHA, 1, KEY_A)
LOAD = encode_command("SCRIPT", "LOAD", BODY)
LOADED = b"$40\r\n" + SHA + b"\r\n"
NOSCRIPT = b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
NOSCRIPT_91 = b"-NOSCRIPT No matching script.\r\n"


class Keeper:
    """Remembers what it is told; asked: scripts of which it says that it asks for them."""

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = {hashlib.sha1(body).hexdigest().encode(): body for body in bodies}
        self.told: list[tuple[bytes, bool]] = []
        self.asked: set[bytes] = set()
        self.vain: list[bytes] = []
        self.faults: list[BaseException] = []
        self.fault: Exception | None = None

    def seen(self, body: bytes, remember: bool) -> bytes:
        if self.fault is not None:
            raise self.fault
        self.told.append((body, remember))
        return hashlib.sha1(body).hexdigest().encode()

    def load(self, sha: bytes) -> bytes | bool | None:
        if self.fault is not None:
            raise self.fault
        if sha in self.asked:
            return False
        body = self.bodies.get(sha)
        return None if body is None else encode_command("SCRIPT", "LOAD", body)

    def in_vain(self, sha: bytes) -> None:
        self.vain.append(sha)

    def raised(self, what: str, error: BaseException) -> None:
        self.faults.append(error)


def keeping(stage: Stage, *bodies: bytes) -> Keeper:
    keeper = Keeper(*bodies)
    stage.exchange.scripts.keeper = keeper
    return keeper


def called(stage: Stage, *frames: bytes) -> End:
    client = stage.client()
    client.send(b"".join(frames))
    stage.turn()
    return client


def drained(stage: Stage, client: End, frames: list[bytes]) -> None:
    """Sends commands for one node, which answers all of them."""
    for frame in frames:
        client.send(frame)
        stage.turn(1)
        stage.until(lambda: stage.nodes.get(A))
        stage.node(A).send(b":1\r\n" * len(CommandReader().feed(stage.hear(stage.node(A), len(frame)))))
        stage.hear(client)


# -- repair -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [NOSCRIPT, NOSCRIPT_91])
@pytest.mark.parametrize("name", ["EVALSHA", "evalsha_ro"])
def test_a_node_that_lacks_the_script_is_given_it(play: Play, line: bytes, name: str) -> None:
    stage = play()
    keeping(stage, BODY)
    frame = encode_command(name, SHA.upper(), 1, KEY_A)
    client = called(stage, frame)
    exchange(stage, A, frame, line)
    exchange(stage, A, LOAD + frame, LOADED + b":1\r\n")
    assert client.get() == b":1\r\n"
    assert stage.count("redirections")["noscript"] == 1
    assert stage.count("commands")[name.lower()]["errors"] == {}


def test_a_script_nobody_knows(play: Play) -> None:
    stage = play()
    keeping(stage)
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, NOSCRIPT)
    assert client.get() == NOSCRIPT
    assert stage.count("redirections")["noscript"] == 0


def test_nobody_remembers(play: Play) -> None:
    stage = play()
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, NOSCRIPT)
    assert client.get() == NOSCRIPT


def test_once_per_request(play: Play) -> None:
    """A script that says it itself, in the server's words, is run once more and no further."""
    stage = play()
    keeper = keeping(stage, BODY)
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, NOSCRIPT)
    exchange(stage, A, LOAD + EVALSHA, LOADED + NOSCRIPT)
    assert client.get() == NOSCRIPT
    assert keeper.vain == [SHA]


@pytest.mark.parametrize(
    "frame", [GET_A, EVAL, encode_command("FCALL", SHA, 1, KEY_A), encode_command("EVALSHA", SHA[:39], 1, KEY_A)]
)
def test_only_for_a_call_by_sha(play: Play, frame: bytes) -> None:
    stage = play()
    keeping(stage, BODY)
    client = called(stage, frame)
    exchange(stage, A, frame, NOSCRIPT)
    assert client.get() == NOSCRIPT


@pytest.mark.parametrize("line", [b"-NOSCRIPT No matching script\r\n", b"-NOSCRIPT mine\r\n", NOSCRIPT[:-2] + b" \r\n"])
def test_only_in_the_servers_words(play: Play, line: bytes) -> None:
    stage = play()
    keeping(stage, BODY)
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, line)
    assert client.get() == line


def test_one_copy_for_all_that_is_under_way(play: Play) -> None:
    """What was sent before the script was loaded goes again behind it, and brings no copy of its own."""
    stage = play()
    keeping(stage, BODY)
    clients = [called(stage, EVALSHA, EVALSHA) for _ in range(3)]
    exchange(stage, A, EVALSHA * 6, NOSCRIPT * 6)
    exchange(stage, A, LOAD + EVALSHA * 6, LOADED + b"".join(b":%d\r\n" % n for n in range(6)))
    assert [client.get() for client in clients] == [b":0\r\n:1\r\n", b":2\r\n:3\r\n", b":4\r\n:5\r\n"]
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, NOSCRIPT)  # flushed at the node: what was loaded before is of no use
    exchange(stage, A, LOAD + EVALSHA, LOADED + b":7\r\n")
    assert client.get() == b":7\r\n"


def test_a_loading_that_fails(play: Play) -> None:
    stage = play()
    keeping(stage, BODY)
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, NOSCRIPT)
    exchange(stage, A, LOAD + EVALSHA, b"-OOM command not allowed\r\n" + NOSCRIPT)
    assert client.get() == NOSCRIPT


def test_at_the_node_that_ask_names(play: Play) -> None:
    """The command goes with ASKING again, which stands right before it."""
    stage = play()
    keeping(stage, BODY)
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, ask(B))
    exchange(stage, A, EXISTS_A, ask(B))
    exchange(stage, B, ASKING + EVALSHA, b"+OK\r\n" + NOSCRIPT)
    exchange(stage, B, LOAD + ASKING + EVALSHA, LOADED + b"+OK\r\n:1\r\n")
    assert client.get() == b":1\r\n"


def test_at_both_nodes_of_a_redirection(play: Play) -> None:
    stage = play()
    keeping(stage, BODY)
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, NOSCRIPT)
    exchange(stage, A, LOAD + EVALSHA, LOADED + moved(B))
    exchange(stage, A, EXISTS_A, moved(B))
    exchange(stage, B, EVALSHA, NOSCRIPT)
    exchange(stage, B, LOAD + EVALSHA, LOADED + b":1\r\n")
    assert client.get() == b":1\r\n"


def test_a_connection_lost_on_the_way(play: Play) -> None:
    """Another connection knows nothing of what was loaded by the one before."""
    stage = play()
    keeping(stage, BODY)
    frame = encode_command("EVALSHA_RO", SHA, 1, KEY_A)
    client = called(stage, frame)
    exchange(stage, A, frame, NOSCRIPT)
    assert stage.hear(stage.node(A), len(LOAD + frame)) == LOAD + frame
    stage.node(A).close()
    stage.until(lambda: len(stage.nodes[A]) == 2)
    exchange(stage, A, frame, NOSCRIPT)
    exchange(stage, A, LOAD, LOADED)  # what may have cost a connection goes by itself
    exchange(stage, A, frame, b":1\r\n")
    assert client.get() == b":1\r\n"


def test_a_write_that_was_repaired_and_lost_is_not_repeated(play: Play) -> None:
    stage = play()
    keeping(stage, BODY)
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, NOSCRIPT)
    assert stage.hear(stage.node(A), len(LOAD + EVALSHA)) == LOAD + EVALSHA
    stage.node(A).close()
    stage.turn()
    assert client.get().startswith(b"-ERR connection to the node was lost after")


def test_the_client_leaves_meanwhile(play: Play) -> None:
    stage = play()
    keeping(stage, BODY)
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, NOSCRIPT)
    client.close()
    exchange(stage, A, LOAD + EVALSHA, LOADED + b":1\r\n")


def test_a_full_window(play: Play) -> None:
    """The script fills it: the command waits for room, and meets the script there."""
    stage = play(max_window=4096)
    large = BODY + b" " * 8000
    sha = hashlib.sha1(large).hexdigest().encode()
    frame = encode_command("EVALSHA", sha, 1, KEY_A)
    load = encode_command("SCRIPT", "LOAD", large)
    keeping(stage, large)
    client = called(stage, frame)
    exchange(stage, A, frame, NOSCRIPT)
    exchange(stage, A, load, LOADED)
    exchange(stage, A, frame, b":1\r\n")
    assert stage.hear(client) == b":1\r\n"


# -- asked for elsewhere ------------------------------------------------------------------------------------------


def test_it_waits_while_the_script_is_asked_for(play: Play) -> None:
    stage = play(backoff_s=1000.0, backoff_max_s=1000.0, timeout_s=5000.0)
    keeper = keeping(stage, BODY)
    keeper.asked = {SHA}
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, NOSCRIPT)
    assert stage.parking.waiting == 1
    keeper.asked = set()
    stage.parking.script_answered(b"0" * 40, True)
    stage.parking.script_answered(b"0" * 40, False)
    assert (client.get(), stage.parking.waiting) == (b"", 1)
    stage.parking.script_answered(SHA, True)
    stage.turn()
    exchange(stage, A, EVALSHA, NOSCRIPT)
    exchange(stage, A, LOAD + EVALSHA, LOADED + b":1\r\n")
    assert client.get() == b":1\r\n"
    assert stage.count("retries")["noscript", "retried"] == 1


def test_it_is_redirected_again_after_it_has_waited(play: Play) -> None:
    """What waited for its script begins anew at the slot's owner, which has been learnt."""
    stage = play(backoff_s=1000.0, backoff_max_s=1000.0, timeout_s=5000.0)
    keeper = keeping(stage, BODY)
    keeper.asked = {SHA}
    client = called(stage, EVALSHA)
    exchange(stage, A, EVALSHA, moved(B))
    exchange(stage, A, EXISTS_A, moved(B))
    exchange(stage, B, EVALSHA, NOSCRIPT)
    keeper.asked = set()
    stage.parking.script_answered(SHA, True)
    stage.turn()
    exchange(stage, B, EVALSHA, ask(C))
    exchange(stage, B, EXISTS_A, ask(C))
    exchange(stage, C, ASKING + EVALSHA, b"+OK\r\n" + NOSCRIPT)
    exchange(stage, C, LOAD + ASKING + EVALSHA, LOADED + b"+OK\r\n:1\r\n")
    assert client.get() == b":1\r\n"


def test_nobody_else_knows_it(play: Play) -> None:
    stage = play(backoff_s=1000.0, backoff_max_s=1000.0, timeout_s=5000.0)
    keeper = keeping(stage)
    keeper.asked = {SHA}
    client, gone = called(stage, EVALSHA), called(stage, EVALSHA)
    exchange(stage, A, EVALSHA * 2, NOSCRIPT_91 * 2)
    gone.close()
    stage.turn()
    stage.parking.script_answered(SHA, False)
    stage.turn()
    assert client.get() == NOSCRIPT_91
    assert stage.count("retries")["noscript", "gave_up"] == 1


def test_it_waits_no_longer_than_its_time(play: Play) -> None:
    stage = play(timeout_s=0.05)
    keeper = keeping(stage)
    keeper.asked = {SHA}
    client = called(stage, EVALSHA)
    give_up = time.monotonic() + 10
    while not (said := client.get()):
        assert time.monotonic() < give_up
        for _ in range(stage.node(A).get().count(EVALSHA)):
            stage.node(A).send(NOSCRIPT)
        stage.turn(1)
    assert said == NOSCRIPT


def test_a_fault_of_the_keeper_costs_no_more_than_the_error(play: Play) -> None:
    stage = play()
    keeper = keeping(stage, BODY)
    keeper.fault = RuntimeError("broken")
    client = called(stage, EVALSHA, EVAL)
    exchange(stage, A, EVALSHA + EVAL, NOSCRIPT + b":1\r\n")
    assert client.get() == NOSCRIPT + b":1\r\n"
    assert len(keeper.faults) == 2


# -- told ---------------------------------------------------------------------------------------------------------


def test_a_body_is_told_once(play: Play) -> None:
    stage = play()
    keeper = keeping(stage)
    read_only = encode_command("eval_ro", BODY, 1, KEY_A)
    client = called(stage, EVAL * 3 + read_only)
    exchange(stage, A, EVAL * 3 + read_only, b":1\r\n" * 4)
    assert client.get() == b":1\r\n" * 4
    assert keeper.told == [(BODY, True)]
    stage.exchange.scripts.forget()
    called(stage, EVAL)
    exchange(stage, A, EVAL, b":1\r\n")
    assert keeper.told == [(BODY, True)] * 2


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 64, 65, 1000])
def test_bodies_are_told_apart(play: Play, size: int) -> None:
    """By every byte and by their length."""
    stage = play()
    keeper = keeping(stage)
    bodies = {b"x" * size, b"x" * (size + 1), b"\0" * size, b"\0" * (size + 1)}
    bodies |= {b"x" * at + b"y" + b"x" * (size - at - 1) for at in range(size)}
    some = sorted(bodies)[:500]
    drained(stage, stage.client(), [encode_command("EVAL", body, 1, KEY_A) for body in some])
    assert sorted(body for body, _ in keeper.told) == some


def test_a_new_body_each_time_is_told_only_so_often(play: Play) -> None:
    stage = play()
    keeper = keeping(stage)
    began = time.monotonic()
    drained(stage, stage.client(), [encode_command("EVAL", b"return %d" % n, 1, KEY_A) for n in range(3000)])
    took_s = time.monotonic() - began
    assert 1000 <= len(keeper.told) <= 1001 + 200 * took_s
    assert all(remember for _, remember in keeper.told)


def test_a_very_long_body_is_not_told(play: Play) -> None:
    stage = play()
    keeper = keeping(stage)
    client = called(stage)
    stage.pour(client, encode_command("EVAL", b" " * ((1 << 20) + 1), 1, KEY_A))
    assert keeper.told == []


# -- without keys -------------------------------------------------------------------------------------------------


def where(stage: Stage, frame: bytes) -> list[str]:
    """The nodes that got it, and its answer."""
    client = called(stage, frame)
    stage.turn()
    got = [str(address) for address, ends in stage.nodes.items() for end in ends if end.get() == frame]
    for ends in stage.nodes.values():
        for end in ends:
            if got and str(next(a for a, e in stage.nodes.items() if end in e)) in got:
                end.send(b":1\r\n")
    stage.turn()
    assert client.get() == b":1\r\n"
    return got


def test_a_script_without_keys_stays_with_one_node(play: Play) -> None:
    """Of its body as of its SHA, whoever calls it; different scripts go to different nodes."""
    stage = play()
    keeping(stage)
    homes = set()
    for n in range(20):
        body = b"return %d" % n
        sha = hashlib.sha1(body).hexdigest()
        slot = int(sha[:4], 16) % 16384
        home = [str(A if slot < 5461 else B if slot < 10923 else C)]
        for frame in (
            encode_command("EVAL", body, 0),
            encode_command("EVAL_RO", body, 0, "argument"),
            encode_command("EVALSHA", sha, 0),
            encode_command("evalsha_ro", sha.upper(), 0),
        ):
            assert where(stage, frame) == home
        homes |= set(home)
    assert len(homes) == 3


def test_a_function_without_keys_stays_with_one_node(play: Play) -> None:
    stage = play()
    slot = slot_of(b"myfunc")
    home = [str(A if slot < 5461 else B if slot < 10923 else C)]
    for name, function in (("FCALL", "myfunc"), ("FCALL_RO", "MyFunc"), ("fcall", "MYFUNC")):
        assert where(stage, encode_command(name, function, 0)) == home


def test_a_slot_without_an_owner(play: Play) -> None:
    stage = play([(A, [], [(SLOT_A, SLOT_A)])])
    keeping(stage)
    assert where(stage, encode_command("EVAL", b"return 1", 0)) == [str(A)]
    assert where(stage, encode_command("EVALSHA", "no sha", 0)) == [str(A)]
    assert where(stage, encode_command("FCALL", b"f" * 500, 0)) == [str(A)]


def test_a_redirection_that_a_script_without_keys_names_is_not_followed(play: Play) -> None:
    stage = play()
    keeping(stage)
    frame = encode_command("EVALSHA", "0000" + "f" * 36, 0)
    client = called(stage, frame)
    exchange(stage, A, frame, moved(B, 0))
    assert client.get() == moved(B, 0)


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "sha"),
    [
        (EVALSHA, SHA),
        (encode_command("eValSha_rO", SHA.upper(), 0), SHA.upper()),
        (b"*2\r\n$7\r\nEVALSHA\r\n$40\r\n" + SHA, SHA),
        (EVAL, None),
        (encode_command("EVALSHA", SHA + b"0", 0), None),
        (encode_command("EVALSHAX", SHA, 0), None),
        (b"*2\r\n$7\r\nEVALSHA\r\n$40\r\n" + SHA[:39], None),
        (b"*1\r\n$7\r\nEVALSHA\r\n", None),
        (b"*1\r\n$7\r\nEVALSHA", None),
        (b"*1\r\n$7\r", None),
        (b"*1\r\n$99999999999999999999\r\n", None),
        (b"*1\r\n", None),
        (b"*1", None),
        (b"", None),
    ],
)
def test_the_script_that_a_command_names(frame: bytes, sha: bytes | None) -> None:
    assert script_sha(frame) == sha
