"""proxy.config.faults: what cannot be together is found beside what is wrong by itself, and nothing is made up."""

import pytest

from proxy.config import models as config
from proxy.config.faults import Conflict
from proxy.config.file import read
from proxy.config.models import ConfigFaults

SEEDS = "cluster: {seeds: ['127.0.0.1:7001']}\n"


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """The faults of a text, one `line: key: reason` each; `secret` is a file with one."""
    monkeypatch.delenv("MISSING", raising=False)
    (tmp_path / "secret").write_text("s3cr3t")

    def finder(text: str) -> list[str]:
        path = tmp_path / "proxy.yaml"
        path.write_text(text)
        with pytest.raises(ConfigFaults) as raised:
            config.load(path)
        return [f"{fault.line}: {fault.key}: {fault.reason}" for fault in raised.value.faults]

    return finder


def test_combinations_beside_faults(faults):
    found = faults(
        """nosuch: 1
cluster:
  username: u
  refresh_interval: 100ms
listeners:
  - address: a:1
    reads: somewhere
  - address: a:1
    mode: "0600"
  - 5
  - address: unix:/h
    backlog: 0
clients:
  password: x
  password_file: secret
  max_clients: 0
backends:
  backoff_min: 3s
admin: {address: off}
ready: {partial: true}
"""
    )
    assert found == [
        "1: nosuch: unknown option 'nosuch'",
        "2: cluster.refresh_min_gap: longer than refresh_interval",
        "2: cluster.seeds: is required",
        "3: cluster.username: a user needs password or password_file",
        "7: listeners[0].reads: should be 'primary', 'prefer_primary', 'replica', 'prefer_replica' or 'any'",
        "8: listeners[1].address: a:1 is listened on already",
        "9: listeners[1].mode: only the file of a unix: address has a mode",
        "10: listeners[2]: should be a mapping of options",
        "12: listeners[3].backlog: should be at least 1",
        "14: clients.password: either password or password_file, not both",
        "16: clients.max_clients: should be at least 1",
        "18: backends.backoff_min: longer than backoff_max",
        "20: ready.partial: nobody can ask for readiness while admin.address is off",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("backends: {backoff_min: 3s, backoff_max: soon}", "backends.backoff_max"),
        ("backends: {backoff_min: soon, backoff_max: 1ms}", "backends.backoff_min"),
        ("requests: {retry_backoff_min: 1s, retry_backoff_max: 5}", "requests.retry_backoff_max"),
        ("clients: {output_soft_limit: 2gb, output_hard_limit: 3tb}", "clients.output_hard_limit"),
        ("clients: {password: x, password_file: missing}", "clients.password_file"),
        ("listeners: [{address: '127.0.0.1:9617'}]\nadmin: {address: 1}", "admin.address"),
        ("listeners: [{address: '127.0.0.1:7617'}, {address: nowhere}]", "listeners[1].address"),
        ("listeners: [{address: nowhere}, {address: '127.0.0.1:7617'}]", "listeners[0].address"),
        ("listeners: [5, {address: '127.0.0.1:7617'}]", "listeners[0]"),
        ("listeners: [{address: nowhere, mode: '0600', owner: '1'}]", "listeners[0].address"),
        ("listeners: [{address: 'unix:x', mode: '0600'}]", "listeners[0].address"),
        ("clients: {protected_mode: 5}\nlisteners: [{address: '0.0.0.0:1'}]", "clients.protected_mode"),
        ("admin: {address: nowhere}\nready: {partial: true}", "admin.address"),
        ("admin: 5\nready: {partial: true}\nlisteners: [{address: '127.0.0.1:9617'}]", "admin"),
        ("clients: {password: x, password_file: '${MISSING}'}", "clients.password_file"),
    ],
)
def test_a_default_in_place_of_what_is_wrong_makes_no_trouble(faults, text, fault):
    assert [one.split(": ")[1] for one in faults(SEEDS + text)] == [fault]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("username: u, password_file: missing", "cluster.password_file"),
        ("username: u, password: 5", "cluster.password"),
        ("username: u, password: '${MISSING}'", "cluster.password"),
        ("refresh_interval: soon, refresh_min_gap: 1m", "cluster.refresh_interval"),
        ("address_map: {a: 'b:1', 'c:x': 'd:1'}", "cluster.address_map.a cluster.address_map.c:x"),
    ],
)
def test_a_default_in_place_of_what_is_wrong_in_cluster(faults, options, fault):
    found = faults(f"cluster: {{seeds: ['a:1'], {options}}}")
    assert [one.split(": ")[1] for one in found] == fault.split()


def test_what_is_given_twice_is_judged_by_its_first_value(faults):
    assert faults(
        SEEDS + "clients:\n  output_hard_limit: 2gb\n  output_hard_limit: 1kb\n  output_soft_limit: 3gb\n"
    ) == [
        "4: clients.output_hard_limit: given twice, first on line 3",
        "5: clients.output_soft_limit: more than output_hard_limit",
    ]


def test_what_a_missing_file_may_have(faults):
    """The password may stand in it."""
    [found] = faults("include: [none.yaml]\ncluster: {seeds: ['a:1'], username: u}\n")
    assert found.startswith("1: include[0]: ")


def test_faults_beside_combinations_show_no_secret(faults):
    found = faults("cluster: {seeds: [], password: s3cr3t, password_file: secret, username: [s3cr3t]}\n")
    assert len(found) == 3
    assert "s3cr3t" not in "".join(found)


@pytest.mark.parametrize(
    ("clients", "open_to_all"),
    [
        ("", True),
        ("password: ''", True),
        ("protected_mode: true", True),
        ("protected_mode: false", False),
        ("password: c", False),
        ("password_file: secret", False),
    ],
)
def test_a_listener_beyond_this_machine_needs_a_password_of_its_own(tmp_path, faults, clients, open_to_all):
    text = f"""cluster: {{seeds: ['a:1'], password_file: secret}}
clients: {{{clients}}}
listeners:
  - address: 127.0.0.1:1
  - address: 0.0.0.0:2
  - address: unix:/x
  - address: "[::1]:1"
  - address: localhost:3
  - address: redis.example:4
"""
    reason = "open to other machines: clients.password is needed, or clients.protected_mode: false"
    if open_to_all:
        assert faults(text) == [f"5: listeners[1].address: {reason}", f"9: listeners[5].address: {reason}"]
    else:
        (tmp_path / "proxy.yaml").write_text(text)
        assert config.load(tmp_path / "proxy.yaml").cluster.secret == "s3cr3t"


def test_without_a_password_there_is_nothing_to_protect(tmp_path):
    path = tmp_path / "proxy.yaml"
    path.write_text(SEEDS + "listeners: [{address: '0.0.0.0:1'}]\n")
    assert config.load(path).clients.protected_mode is True


def test_further_conflicts_stand_in_their_places(tmp_path):
    path = tmp_path / "proxy.yaml"
    path.write_text(SEEDS + "log:\n  file: x\n  level: loud\n")

    def further(settings):
        yield Conflict(("log", "file"), "cannot be")
        yield Conflict(("log", "level"), "is wrong by itself")

    with pytest.raises(ConfigFaults) as raised:
        config.settings_of(read(path), tmp_path, further)
    assert [f"{one.line}: {one.key}" for one in raised.value.faults] == ["3: log.file", "4: log.level"]
    path.write_text(SEEDS + "log: {file: x}\n")
    with pytest.raises(ConfigFaults, match=r"log\.file: cannot be"):
        config.settings_of(read(path), tmp_path, further)
