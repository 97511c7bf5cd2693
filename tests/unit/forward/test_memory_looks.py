"""When all clients are looked at for what they hold, and what becomes of those who were stopped."""

from __future__ import annotations

import time

from proxy.resp.encode import encode_command
from tests.support.datapath import KEY_A, A, Play
from tests.unit.forward.test_memory import MB, closed, offered


def test_who_was_stopped_goes_on_when_the_largest_is_closed(play: Play) -> None:
    """Three are stopped; the next look closes one so large that less than 85 % is left: the others were forgotten."""
    stage = play()
    stage.path.max_memory = 16 * MB
    for _ in range(50):
        stage.client()
    frame = encode_command("SET", KEY_A, b"x" * (3 * MB))
    small = stage.client()
    large = [stage.client() for _ in range(2)]
    head = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n" % (40 * MB)
    streams = {small: frame[: 2 * MB]} | dict.fromkeys(large, head + b"x" * (20 * MB))
    offered(stage, streams)
    assert closed(stage) >= 1
    for client in large:
        client.close()
    stage.turn(50)
    stage.pour(small, frame[2 * MB :])
    stage.drink(stage.node(A))
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert small.get() == b"+OK\r\n"


def test_those_who_come_and_go_at_the_limit_do_not_have_everybody_looked_at(play: Play) -> None:
    """Each of them made the guard sort all clients: 900 connections a second took a worker's whole time."""
    stage = play()
    stage.path.max_memory = 16 * MB
    half = b"*2\r\n$3\r\nGET\r\n$20\r\nx"
    for _ in range(1100):  # of 16 KB each
        stage.client().send(half)
        stage.turn(1)
    took_s = yardstick_s = 0.0
    for n in range(1000):
        began_s = time.process_time()
        stage.client().send(half)
        stage.turn(1)
        took_s += time.process_time() - began_s
        if n % 10 == 0:  # how fast this machine is meanwhile
            began_s = time.process_time()
            sum(n * n for n in range(20_000))
            yardstick_s += time.process_time() - began_s
    print(f"{took_s:.2f} s, {took_s / yardstick_s:.1f} times the yardstick")
    assert took_s < 22 * yardstick_s
    assert stage.path.client_memory < 17 * MB
