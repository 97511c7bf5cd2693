"""proxy.config.units: every spelling has one meaning and every meaning a spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.units import (
    Address,
    check_socket_path,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("50us", 0.00005),
        ("0.05ms", 0.00005),
        ("250ms", 0.25),
        ("30s", 30.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("2d", 172800.0),
        (0, 0.0),
        ("0", 0.0),
        (" 5S ", 5.0),
    ],
)
def test_durations(written, seconds):
    assert parse_duration(written) == seconds


@pytest.mark.parametrize("written", [5, "5", 1.5, "5 s", "-1s", "s", "", "1e3s", "5sec", True, None, [], "366d", "٣s"])
def test_bad_durations(written):
    with pytest.raises(ValueError, match=r"duration|longer"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1k", 1000),
        ("1kb", 1024),
        ("64MB", 64 << 20),
        ("1g", 10**9),
        ("1gb", 1 << 30),
        ("512b", 512),
        ("1.5kb", 1536),
        (0, 0),
    ],
)
def test_sizes(written, size):
    assert parse_size(written) == size


@pytest.mark.parametrize("written", [64, "64", "0.3b", "1tb", "2000gb", "", False, "1 mb"])
def test_bad_sizes(written):
    with pytest.raises(ValueError, match=r"size|whole|more than"):
        parse_size(written)


@pytest.mark.parametrize(
    ("seconds", "spelt"),
    [
        (0.25, "250ms"),
        (5.0, "5s"),
        (90.0, "90s"),
        (300.0, "5m"),
        (3600.0, "1h"),
        (0.0, "0"),
        (0.00005, "50us"),
        (5e-7, "0.5us"),
    ],
)
def test_spelling_of_durations(seconds, spelt):
    assert format_duration(seconds) == spelt


@given(st.integers(0, 365 * 86400 * 1000), st.sampled_from([1000, 1_000_000]))
def test_duration_round_trip(count, per_second):
    assert parse_duration(format_duration(count / per_second)) == count / per_second


@given(st.integers(0, 1 << 40))
def test_size_round_trip(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1:7617", Address("127.0.0.1", 7617)),
        ("redis-0.redis.svc:6379", Address("redis-0.redis.svc", 6379)),
        ("[::1]:7617", Address("::1", 7617)),
        ("host.example.:7617", Address("host.example.", 7617)),
        ("[fe80::1%eth0]:7617", Address("fe80::1%eth0", 7617)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
        ("unix:/run/x.sock", Address(path="/run/x.sock")),
    ],
)
def test_addresses(written, address):
    assert parse_address(written, listen=True, unix=True) == address
    assert str(address) == written


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("localhost", "has no port"),
        ("::1:7617", "needs brackets"),
        (":7617", "no valid host"),
        ("a b:1", "no valid host"),
        (".:1", "no valid host"),
        ("a..b:1", "no valid host"),
        ("x" * 64 + ".de:1", "no valid host"),
        ("a:0", "not a port"),
        ("a:65536", "not a port"),
        ("a:x", "not a port"),
        ("a:", "not a port"),
        ("unix:/run/x.sock", "not a port"),
        (7617, "in quotes"),
    ],
)
def test_bad_addresses(written, reason):
    with pytest.raises(ValueError, match=reason):
        parse_address(written)


@pytest.mark.parametrize(("written", "reason"), [("unix:x.sock", "absolute"), ("unix:/" + "x" * 107, "107 bytes")])
def test_bad_socket_paths(written, reason):
    with pytest.raises(ValueError, match=reason):
        parse_address(written, unix=True)


def test_a_socket_path():
    assert check_socket_path("/run/x.sock") == "/run/x.sock"
    with pytest.raises(ValueError, match="absolute"):
        check_socket_path("unix:/run/x.sock")


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("127.0.0.1:1", "0.0.0.0:1", True),
        ("[::1]:1", "[::]:1", True),
        ("[::1]:1", "[0:0:0:0:0:0:0:1]:1", True),
        ("127.0.0.1:1", "[::]:1", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("localhost:1", "LOCALHOST:1", True),
        ("localhost:1", "127.0.0.1:1", False),
        ("unix:/x", "unix:/x", True),
        ("unix:/x", "unix:/y/../x", True),
        ("unix:/x", "unix:/y", False),
        ("unix:/x", "127.0.0.1:1", False),
    ],
)
def test_overlaps(one, other, overlap):
    first, second = (parse_address(text, listen=True, unix=True) for text in (one, other))
    assert first.overlaps(second) == second.overlaps(first) == overlap


def test_overlaps_by_way_of_a_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to(tmp_path / "run")
    assert Address(path=f"{tmp_path}/run/x").overlaps(Address(path=f"{tmp_path}/var/x"))
