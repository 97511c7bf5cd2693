"""proxy.config.values: what each kind of value takes, from the file and from the environment, and what it refuses."""

import grp
import pwd

import pytest

from proxy.config import models as config
from proxy.config.models import ConfigFaults, Settings
from proxy.config.values import Owner

SEEDS = "cluster: {seeds: ['127.0.0.1:7001']}\n"
OWNER = "should be user, user:group or :group"
SOMEBODY, SOME_GROUP = pwd.getpwall()[0], grp.getgrall()[0]


@pytest.fixture
def load(tmp_path):
    """Settings of a text, as the file proxy.yaml in an empty folder."""

    def loader(text: str) -> Settings:
        path = tmp_path / "proxy.yaml"
        path.write_text(SEEDS + text)
        return config.load(path)

    return loader


def test_number_from_the_environment(load, monkeypatch):
    monkeypatch.setenv("MAX", "123")
    assert load("clients: {max_clients: '${MAX}'}").clients.max_clients == 123


@pytest.mark.parametrize(("text", "count"), [("auto", "auto"), ("1", 1), ("256", 256)])
def test_workers_from_the_environment(load, monkeypatch, text, count):
    monkeypatch.setenv("WORKERS", text)
    assert load("workers: ${WORKERS}").workers == count


@pytest.mark.parametrize("text", ["true", "True", "false"])
def test_yes_and_no_from_the_environment(load, monkeypatch, text):
    monkeypatch.setenv("PARTIAL", text)
    assert load("ready: {partial: '${PARTIAL}'}").ready.partial is (text != "false")


@pytest.mark.parametrize(("written", "size"), [("auto", "auto"), ("0", 0), ("2gb", 2 << 30), ("1k", 1000)])
def test_memory(load, written, size):
    assert load(f"clients: {{max_memory: {written}}}").clients.max_memory == size


@pytest.mark.parametrize(
    ("written", "uid", "gid"),
    [
        ("", -1, -1),
        (SOMEBODY.pw_name, SOMEBODY.pw_uid, -1),
        (f"{SOMEBODY.pw_name}:{SOME_GROUP.gr_name}", SOMEBODY.pw_uid, SOME_GROUP.gr_gid),
        (f":{SOME_GROUP.gr_name}", -1, SOME_GROUP.gr_gid),
        ("1234", 1234, -1),
        ("0:4294967294", 0, 4294967294),
        (":1234", -1, 1234),
    ],
)
def test_owners(load, written, uid, gid):
    [listener] = load(f"listeners: [{{address: 'unix:/x', owner: '{written}'}}]").listeners
    assert listener.owner == Owner(written, uid, gid)
    assert str(listener.owner) == written


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("workers: 0", "2: workers: should be auto or a number from 1 to 256"),
        ("workers: 257", "2: workers: should be auto or a number from 1 to 256"),
        ("workers: 2.5", "2: workers: should be auto or a number from 1 to 256"),
        ("workers: all", "2: workers: should be auto or a number from 1 to 256"),
        ("workers:", "2: workers: should be auto or a number from 1 to 256"),
        ("workers: true", "2: workers: should be auto or a number from 1 to 256"),
        ("ready: {partial: 1}", "2: ready.partial: should be true or false"),
        ("ready: {partial: maybe}", "2: ready.partial: should be true or false"),
        (
            "clients: {max_memory: all}",
            "2: clients.max_memory: should be a size such as 512b, 64kb, 64mb or 1gb, not 'all'",
        ),
        ("clients: {max_memory: 5}", "2: clients.max_memory: '5' has no unit"),
        ("clients: {protected_mode: 1}", "2: clients.protected_mode: should be true or false"),
        (
            "listeners: [{address: 'unix:/x', owner: no-such-user}]",
            "2: listeners[0].owner: there is no user 'no-such-user' on this machine",
        ),
        (
            "listeners: [{address: 'unix:/x', owner: '0:no-such-group'}]",
            "2: listeners[0].owner: there is no group 'no-such-group' on this machine",
        ),
        ("listeners: [{address: 'unix:/x', owner: 33:33}]", f"2: listeners[0].owner: {OWNER}, in quotes"),
        ("listeners: [{address: 'unix:/x', owner: 33}]", f"2: listeners[0].owner: {OWNER}, in quotes"),
        ("listeners: [{address: 'unix:/x', owner: [33]}]", f"2: listeners[0].owner: {OWNER}"),
        ("listeners: [{address: 'unix:/x', owner: '0:'}]", f"2: listeners[0].owner: {OWNER}, not '0:'"),
        ("listeners: [{address: 'unix:/x', owner: ':'}]", f"2: listeners[0].owner: {OWNER}, not ':'"),
        ("listeners: [{address: 'unix:/x', owner: '1:2:3'}]", f"2: listeners[0].owner: {OWNER}, not '1:2:3'"),
        (
            "listeners: [{address: 'unix:/x', owner: '4294967295'}]",
            "2: listeners[0].owner: '4294967295' is not the number of a user (0 to 4294967294)",
        ),
        (
            "listeners: [{address: 'unix:/x', mode: 0600}]",
            '2: listeners[0].mode: should be an octal file mode in quotes, such as "0660"',
        ),
        ("admin: {address: 'unix:/x'}", "2: admin.address: '/x' is not a port"),
        ("requests: {timeout: 0}", "2: requests.timeout: should be more than 0"),
        ("requests: {max_redirections: -1}", "2: requests.max_redirections: should be at least 0"),
        ("clients: {max_clients: true}", "2: clients.max_clients: should be a whole number"),
        ("clients: {max_clients: 1.5}", "2: clients.max_clients: should be a whole number"),
        ("clients: {max_clients: 0}", "2: clients.max_clients: should be at least 1"),
        ("backends: {connections: 65}", "2: backends.connections: should be at most 64"),
        ("backends: {client_name: a b}", "2: backends.client_name: Client names cannot contain spaces"),
        ("commands: {allow: ['a b c']}", "2: commands.allow[0]: 'a b c' is not a command name"),
        ("commands: {deny: ['@a b']}", "2: commands.deny[0]: '@a b' is not a command name"),
    ],
)
def test_fault(load, text, fault):
    with pytest.raises(ConfigFaults) as raised:
        load(text)
    [found] = raised.value.faults
    assert f"{found.line}: {found.key}: {found.reason}".startswith(fault)
