"""proxy.config.diff: what a reload is told to do, and what it may say about it."""

from pathlib import Path

import pytest

from proxy.config import models as config
from proxy.config.diff import Change, diff
from proxy.config.models import Settings

SEEDS = "cluster: {seeds: ['127.0.0.1:7001']}\n"


@pytest.fixture
def changes(tmp_path: Path):
    """The differences between two texts, one `key: old -> new` each; both texts are preceded by the seeds."""

    def finder(old: str, new: str, seeds: str = SEEDS) -> list[str]:
        return [f"{one.key}: {one.old} -> {one.new}" for one in diff(load(seeds + old), load(seeds + new))]

    def load(text: str) -> Settings:
        path = tmp_path / "proxy.yaml"
        path.write_text(text)
        return config.load(path)

    return finder


def test_nothing():
    settings = config.from_seeds(["a:1"])
    assert diff(settings, settings) == diff(settings, config.from_seeds(["a:1"])) == []


def test_a_change():
    assert diff(config.from_seeds(["a:1"]), config.from_seeds(["a:1", "b:2"])) == [
        Change("cluster.seeds", "[a:1]", "[a:1, b:2]")
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "workers: 2", "workers: auto -> 2"),
        ("workers: '2'", "workers: auto", "workers: 2 -> auto"),
        ("", "clients: {protected_mode: false}", "clients.protected_mode: true -> false"),
        ("", "clients: {max_memory: 1gb}", "clients.max_memory: auto -> 1gb"),
        ("clients: {max_memory: 0}", "", "clients.max_memory: 0 -> auto"),
        ("", "requests: {timeout: 10s}", "requests.timeout: 5s -> 10s"),
        ("", "requests: {timeout: 250ms}", "requests.timeout: 5s -> 250ms"),
        ("drain: {delay: 5s}", "", "drain.delay: 5s -> 0"),
        ("", "clients: {max_query: 64mb}", "clients.max_query: 1gb -> 64mb"),
        ("", "clients: {max_clients: 5}", "clients.max_clients: 10000 -> 5"),
        ("", "ready: {partial: true}", "ready.partial: false -> true"),
        ("", "admin: {address: off}", "admin.address: 127.0.0.1:9617 -> off"),
        ("", "commands: {allow: [DEBUG, cluster failover]}", "commands.allow: [] -> [debug, cluster|failover]"),
        ("", "commands: {deny: ['@admin']}", "commands.deny: [] -> [@admin]"),
        ("log: {level: debug}", "", "log.level: debug -> info"),
    ],
)
def test_options_are_spelt_as_in_the_file(changes, old, new, expected):
    assert changes(old, new) == [expected]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "requests: {timeout: 5000ms}"),
        ("", "clients: {max_query: 1024mb}"),
        ("", "listeners: [{address: '127.0.0.1:7617', reads: master}]"),
        ("", "log:"),
        ("admin: {address: off}", "admin: {address: ''}"),
    ],
)
def test_another_spelling_is_no_change(changes, old, new):
    assert changes(old, new) == []


def test_where_it_stands_is_no_change(changes, tmp_path):
    (tmp_path / "base.yaml").write_text("requests: {timeout: 7s}\n")
    assert changes("requests: {timeout: 7s}", "include: [base.yaml]") == []


def test_in_the_order_of_the_file(changes):
    new = "log: {format: json}\nclients: {max_clients: 5, idle_timeout: 1m}\nbackends: {connections: 2}\n"
    assert [one.partition(":")[0] for one in changes("", new)] == [
        "backends.connections",
        "clients.max_clients",
        "clients.idle_timeout",
        "log.format",
    ]


def test_address_map(changes):
    start = "cluster: {seeds: ['a:1'], address_map: {'b:1': 'c:2', d: e"
    assert changes("}}", ", f: g}}", start) == ["cluster.address_map: {b:1: c:2, d: e} -> {b:1: c:2, d: e, f: g}"]


# Listeners


def test_listeners_are_known_by_their_address(changes):
    old = "listeners: [{address: 'unix:/x'}, {address: '127.0.0.1:1', backlog: 5}, {address: '[::1]:2'}]"
    new = "listeners: [{address: '[::1]:2', reads: any}, {address: '127.0.0.1:3'}, {address: 'unix:/x', mode: '0600'}]"
    assert changes(old, new) == [
        "listeners[unix:/x].mode: 0660 -> 0600",
        "listeners[127.0.0.1:1]: 127.0.0.1:1 -> ",
        "listeners[[::1]:2].reads: primary -> any",
        "listeners[127.0.0.1:3]:  -> 127.0.0.1:3",
    ]


def test_new_listeners_in_their_order(changes):
    new = "listeners: [" + ", ".join(f"{{address: 'a:{port}'}}" for port in (5, 3, 9, 1, 7)) + "]"
    assert changes("", new) == ["listeners[127.0.0.1:7617]: 127.0.0.1:7617 -> "] + [
        f"listeners[a:{port}]:  -> a:{port}" for port in (5, 3, 9, 1, 7)
    ]


def test_their_order_is_no_change(changes):
    assert (
        changes("listeners: [{address: 'a:1'}, {address: 'b:1'}]", "listeners: [{address: 'b:1'}, {address: 'a:1'}]")
        == []
    )


def test_owner(changes):
    old, new = (f"listeners: [{{address: 'unix:/x', owner: '{owner}'}}]" for owner in ("", "1234:2345"))
    assert changes(old, new) == ["listeners[unix:/x].owner:  -> 1234:2345"]


# Secrets


@pytest.mark.parametrize(("old", "new"), [("s3cr3t", "s3cr3t2"), ("", "s3cr3t"), ("s3cr3t", "")])
def test_a_changed_password_is_not_shown(changes, old, new):
    assert changes(f"clients: {{password: '{old}'}}", f"clients: {{password: '{new}'}}") == [
        "clients.password: *** -> ***"
    ]


def test_the_same_password_is_no_change(changes):
    assert changes("clients: {password: s3cr3t}", "clients: {password: s3cr3t}") == []


def test_a_password_that_changed_in_its_file(tmp_path):
    secret, path = tmp_path / "secret", tmp_path / "proxy.yaml"
    path.write_text("cluster: {seeds: ['a:1'], password_file: secret}\n")
    secret.write_text("s3cr3t\n")
    old = config.load(path)
    assert diff(old, config.load(path)) == []
    secret.write_text("s3cr3t2\n")
    assert diff(old, config.load(path)) == [Change("cluster.password_file", "***", "***")]


def test_another_password_file(changes, tmp_path):
    (tmp_path / "one").write_text("s3cr3t")
    (tmp_path / "two").write_text("s3cr3t2")
    assert changes("clients: {password_file: one}", "clients: {password_file: two}") == [
        "clients.password_file: one -> two"
    ]
    assert changes("clients: {password: s3cr3t}", "clients: {password_file: two}") == [
        "clients.password: *** -> ***",
        "clients.password_file:  -> two",
    ]
