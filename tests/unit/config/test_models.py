"""proxy.config.models: what a file may say, what it means, and every fault with its place."""

import json
import pickle
import re
from pathlib import Path

import pytest
import yaml

from proxy.config import models as config
from proxy.config.models import Address, ConfigFaults, Section, Settings
from proxy.config.values import MASK, Owner

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "config" / "proxy.yaml"
SEEDS = "cluster: {seeds: ['127.0.0.1:7001']}\n"


@pytest.fixture
def load(tmp_path):
    """Settings of a text, as the file proxy.yaml in an empty folder."""

    def loader(text: str) -> Settings:
        path = tmp_path / "proxy.yaml"
        path.write_text(text)
        return config.load(path)

    return loader


@pytest.fixture
def faults(load):
    """The faults of a text, one `line: key: reason` each."""

    def finder(text: str) -> list[str]:
        with pytest.raises(ConfigFaults) as raised:
            load(text)
        return [f"{fault.line}: {fault.key}: {fault.reason}" for fault in raised.value.faults]

    return finder


# The committed files are the models


def sections(model: type[Section] = Settings, path: tuple[str, ...] = ()):
    """(dotted path, field) of every option of the models."""
    for name, option in model.model_fields.items():
        inner = next((kind for kind in kinds(option.annotation) if isinstance(kind, type)), None)
        yield ".".join((*path, name)), option
        if inner is not None and issubclass(inner, Section):
            yield from sections(inner, (*path, name))


def kinds(annotation):
    yield annotation if not getattr(annotation, "__args__", None) else annotation.__args__[0]


def test_sample_has_every_option_and_its_default():
    text = SAMPLE.read_text()
    settings = config.load(SAMPLE)
    assert settings == config.from_seeds(map(str, settings.cluster.seeds))

    written = yaml.safe_load(text)
    written["listeners"] = written["listeners"][0]
    listed = set()

    def collect(values, path):
        for name, value in values.items():
            listed.add(".".join((*path, name)))
            if isinstance(value, dict):
                collect(value, (*path, name))

    collect(written, ())
    assert listed == {path for path, _ in sections()}


def test_sample_explains_every_option_in_the_models_words():
    comments: dict[str, str] = {}
    comment, path = [], []
    for line in SAMPLE.read_text().splitlines():
        bare = line.replace("  - address", "    address")
        if bare.strip().startswith("#"):
            comment.append(bare.strip("# "))
        elif found := re.match(r"( *)(\w+):", bare):
            depth = min(len(found[1]), 2) // 2
            path = [*path[:depth], found[2]]
            comments[".".join(path)] = " ".join(comment)
            comment = []
        else:
            comment = []
    for name, option in sections():
        if option.description:
            assert option.description in comments[name], name
        else:
            assert comments[name], name


def test_minimal_sample():
    assert config.load(ROOT / "config" / "minimal.yaml") == config.load(SAMPLE)
    assert yaml.safe_load((ROOT / "config" / "minimal.yaml").read_text()) == {"cluster": {"seeds": ["127.0.0.1:7001"]}}


def test_schema_file():
    assert json.loads((ROOT / "config" / "proxy.schema.json").read_text()) == config.schema()


# What values mean


def test_defaults():
    settings = config.from_seeds(["10.0.0.1:7001", "[::1]:7002"])
    assert settings.cluster.seeds == (Address("10.0.0.1", 7001), Address("::1", 7002))
    assert [(str(one.address), one.reads) for one in settings.listeners] == [("127.0.0.1:7617", "primary")]
    assert settings.requests.timeout == 5.0
    assert settings.clients.output_soft_limit == 1 << 20
    assert settings.clients.idle_timeout == 0
    assert settings.admin.address == Address("127.0.0.1", 9617)
    assert settings.cluster.secret == settings.clients.secret == ""
    assert settings.workers == "auto"
    assert settings.listeners[0].owner == Owner()
    assert settings.ready.partial is False
    assert (settings.clients.max_memory, settings.clients.protected_mode) == ("auto", True)
    assert (settings.drain.delay, settings.drain.timeout) == (0.0, 10.0)


def test_values(load):
    settings = load(
        """
workers: 4
drain: {delay: 5s, timeout: 1m}
listeners:
  - address: "[::1]:7000"
    reads: prefer_master
  - address: unix:/run/redis-proxy.sock
    mode: "0600"
    owner: "1234:2345"
    reads: master
cluster:
  seeds: [a:1, "b:2"]
  endpoint: hostname
  refresh_interval: 1m
requests: {timeout: 250ms}
clients: {output_hard_limit: 2gb, max_clients: 5, max_memory: 3mb}
commands: {allow: [DEBUG, cluster failover, "config|set"], deny: [GET, "@Dangerous", client kill]}
admin: {address: off}
log:
"""
    )
    assert settings.listeners[0].reads == "prefer_primary"
    assert settings.listeners[0].address == Address("::1", 7000)
    assert settings.listeners[1].reads == "primary"
    assert settings.listeners[1].address.path == "/run/redis-proxy.sock"
    assert settings.listeners[1].owner == Owner("1234:2345", 1234, 2345)
    assert settings.workers == 4
    assert settings.clients.max_memory == 3 << 20
    assert (settings.drain.delay, settings.drain.timeout) == (5.0, 60.0)
    assert settings.cluster.refresh_interval == 60.0
    assert settings.requests.timeout == 0.25
    assert settings.clients.output_hard_limit == 2 << 30
    assert settings.commands.allow == ("debug", "cluster|failover", "config|set")
    assert settings.commands.deny == ("get", "@dangerous", "client|kill")
    assert settings.admin.address is None
    assert settings.log.level == "info"


@pytest.mark.parametrize(("pause", "seconds"), [("10ms", 0.01), ("50us", 0.00005), (0, 0.0)])
def test_bounds_of_pause_and_window(load, pause, seconds):
    backends = load(SEEDS + f"backends: {{batch_pause: {pause}, max_window: 64kb}}").backends
    assert (backends.batch_pause, backends.max_window) == (seconds, 65536)


def test_settings_can_be_sent_to_another_process(load, tmp_path):
    (tmp_path / "secret").write_text("s3cr3t")
    settings = load(
        SEEDS + "listeners: [{address: 'unix:/x', owner: '1:2'}]\nclients: {password_file: secret}\nworkers: 3\n"
    )
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_address_map_has_one_spelling(load):
    cluster = load(
        "cluster: {seeds: ['a:1'], address_map: {'10.0.0.1:07001': '127.0.0.1:1', 10.0.0.1: node, '::1': '::2',"
        " '[::1]:5': '[::3]:6'}}"
    ).cluster
    assert cluster.address_map == {
        "10.0.0.1:7001": "127.0.0.1:1",
        "10.0.0.1": "node",
        "::1": "::2",
        "[::1]:5": "[::3]:6",
    }


def test_settings_do_not_change():
    settings = config.from_seeds(["a:1"])
    with pytest.raises(ValueError, match="frozen"):
        settings.requests.timeout = 1.0


# Secrets


def test_secret_from_a_file_beside_the_configuration(load, tmp_path):
    (tmp_path / "secret").write_text("s3cr3t \n")
    settings = load("cluster: {seeds: ['a:1'], username: u, password_file: secret}")
    assert settings.cluster.secret == "s3cr3t "


def test_a_new_secret_is_a_difference(load, tmp_path):
    (tmp_path / "secret").write_text("one")
    before = load("cluster: {seeds: ['a:1'], password_file: secret}")
    (tmp_path / "secret").write_text("two")
    assert load("cluster: {seeds: ['a:1'], password_file: secret}") != before


def test_secrets_are_never_shown(load, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("s3cr3t")
    monkeypatch.setenv("PASSWORD", "s3cr3t")
    settings = load("cluster: {seeds: ['a:1'], password_file: secret}\nclients: {password: '${PASSWORD}'}")
    assert settings.clients.secret == "s3cr3t"
    for shown in (repr(settings), str(settings), config.effective(settings)):
        assert "s3cr3t" not in shown
    assert yaml.safe_load(config.effective(settings))["clients"]["password"] == MASK


def test_what_is_printed_in_place_of_a_secret_is_refused(load, faults):
    """--print-config > new.yaml must not make the mask the password."""
    settings = load(SEEDS + "clients: {password: s3cr3t}")
    [found] = faults(config.effective(settings))
    reason = "is the mask that --print-config writes in place of a secret: put the secret here"
    assert found.endswith(f" clients.password: {reason}")
    assert faults("cluster: {seeds: ['a:1'], password: '**********'}") == [f"1: cluster.password: {reason}"]


def test_faults_do_not_show_secrets(faults, tmp_path):
    (tmp_path / "secret").write_text("")
    found = faults("cluster: {seeds: ['a:1'], password: 1234567, password_file: secret, username: [x]}\n")
    assert "1234567" not in "".join(found)
    assert "1: cluster.password_file: the secret in 'secret' is empty" in found


# --print-config


def test_effective_reads_back(load):
    settings = load(
        SEEDS + "listeners: [{address: 'unix:/x', mode: '0600', owner: ':1234'}, {address: '[::1]:1'}]\n"
        "workers: 3\ndrain: {delay: 1s}\n"
        "requests: {timeout: 1.5s}\nclients: {idle_timeout: 0, max_query: 1000b}\nadmin: {address: off}\n"
    )
    assert load(config.effective(settings)) == settings


def test_effective_of_the_defaults_reads_back(load):
    settings = load(SEEDS)
    assert load(config.effective(settings)) == settings


def test_effective_has_the_words_of_the_file(load):
    shown = yaml.safe_load(config.effective(load(SEEDS + "admin: {address: off}\nworkers: auto\n")))
    assert shown["workers"] == "auto"
    assert shown["admin"]["address"] == "off"
    assert shown["drain"] == {"delay": "0", "timeout": "10s"}


# Faults


def test_all_faults_at_once(faults):
    found = faults(
        """listeners:
  - address: 127.0.0.1
    reads: repica
cluster:
  sedes: [a:1]
  password_file: none
requests:
  timeout: 5
  retry_backoff_min: 2parsec
clients:
  output_soft_limit: 2gb
  output_soft_limit: 3gb
  password: x
  password_file: none
timeout: 3s
log: {level: loud}
commands: [debug]
"""
    )
    assert found == [
        "2: listeners[0].address: '127.0.0.1' has no port: host:port",
        "3: listeners[0].reads: should be 'primary', 'prefer_primary', 'replica', 'prefer_replica' or 'any'",
        "4: cluster.seeds: is required",
        "5: cluster.sedes: unknown option 'sedes', did you mean 'seeds'?",
        "6: cluster.password_file: cannot read the secret in 'none': No such file or directory",
        "8: requests.timeout: '5' has no unit: should be a duration such as 250ms, 30s, 5m or 1h",
        "9: requests.retry_backoff_min: unknown unit 'parsec': should be a duration such as 250ms, 30s, 5m or 1h",
        "12: clients.output_soft_limit: given twice, first on line 11",
        "14: clients.password_file: cannot read the secret in 'none': No such file or directory",
        "15: timeout: unknown option 'timeout', did you mean 'requests.timeout'?",
        "16: log.level: should be 'debug', 'info', 'warning' or 'error'",
        "17: commands: should be a mapping of options",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("worker: 2", "2: worker: unknown option 'worker', did you mean 'workers'?"),
        ("drain: {delay: 5}", "2: drain.delay: '5' has no unit"),
        ("drain: {timeout: 0}", "2: drain.timeout: should be more than 0"),
        ("drain: 5s", "2: drain: should be a mapping of options"),
        (
            "ready: {partial: true}\nadmin: {address: off}",
            "2: ready.partial: nobody can ask for readiness while admin.address is off",
        ),
        (
            "listeners:\n- {address: 'unix:/x'}\n- {address: 'unix:/y'}\n- {address: 'unix:/x'}",
            "5: listeners[2].address: unix:/x is listened on already",
        ),
        (
            "listeners:\n- {address: 'unix:/x'}\n- {address: 'unix:/y/../x'}",
            "4: listeners[1].address: unix:/y/../x overlaps unix:/x, which is listened on already",
        ),
        (
            "listeners:\n- {address: '127.0.0.1:1'}\n- {address: '0.0.0.0:1'}",
            "4: listeners[1].address: 0.0.0.0:1 overlaps 127.0.0.1:1, which is listened on already",
        ),
        (
            "listeners:\n- {address: '0.0.0.0:9617'}",
            "3: listeners[0].address: 0.0.0.0:9617 overlaps 127.0.0.1:9617, which is listened on already",
        ),
        (
            "listeners:\n- {address: 'a:0'}\n- {address: 'b:0'}\n- {address: 'a:0'}",
            "5: listeners[2].address: a:0 is given twice",
        ),
        (
            "listeners:\n- {address: 'a:1', owner: '1'}",
            "3: listeners[0].owner: only the file of a unix: address has an owner",
        ),
        ("clients: {output_soft_limit: 2gb}", "2: clients.output_soft_limit: more than output_hard_limit"),
        ("backends: {batch_pause: 10001us}", "2: backends.batch_pause: should be at most 10ms"),
        ("backends: {suspect_timeout: 99ms}", "2: backends.suspect_timeout: should be from 100ms to 60s"),
        ("backends: {suspect_timeout: 61s}", "2: backends.suspect_timeout: should be from 100ms to 60s"),
        ("backends: {batch_pause: 1s}", "2: backends.batch_pause: should be at most 10ms"),
        ("backends: {max_window: 65535b}", "2: backends.max_window: should be at least 64kb"),
        ("backends: {max_window: 0}", "2: backends.max_window: should be"),
        ("backends: {backoff_min: 3s}", "2: backends.backoff_min: longer than backoff_max"),
        ("requests: {retry_backoff_min: 1s}", "2: requests.retry_backoff_min: longer than retry_backoff_max"),
        (
            "listeners:\n- {address: 'a:1'}\n- {address: 'a:1'}",
            "4: listeners[1].address: a:1 is listened on already",
        ),
        (
            "listeners:\n- {address: '127.0.0.1:9617'}",
            "3: listeners[0].address: 127.0.0.1:9617 is listened on already",
        ),
        (
            "listeners:\n- {address: 'a:1', mode: '0600'}",
            "3: listeners[0].mode: only the file of a unix: address has a mode",
        ),
        ("listeners: []", "2: listeners: should have at least one entry"),
        ("commands: {allow: debug}", "2: commands.allow: should be a list"),
        ("log: {file: 5}", "2: log.file: should be text: write it in quotes"),
        ("include: x.yaml", "2: include: should be a list"),
    ],
)
def test_fault(faults, text, fault):
    [found] = faults(SEEDS + text)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("seeds: []", "cluster.seeds: should have at least one entry"),
        ("seeds: a:1", "cluster.seeds: should be a list"),
        ("seeds: ['a:1', '::1:2']", "cluster.seeds[1]: an IPv6 address needs brackets"),
        ("seeds: ['a:1'], username: u", "cluster.username: a user needs password or password_file"),
        ("seeds: ['a:1'], password: 1", "cluster.password: should be text: write it in quotes"),
        ("seeds: ['a:1'], refresh_min_gap: 1m", "cluster.refresh_min_gap: longer than refresh_interval"),
        (
            "seeds: ['a:1'], address_map: {'b:1': c}",
            "cluster.address_map.b:1: a host maps to a host, host:port to host:port",
        ),
        ("seeds: ['a:1'], address_map: {'b:x': 'c:1'}", "cluster.address_map.b:x: 'x' is not a port"),
        ("seeds: ['a:1'], endpoint: dns", "cluster.endpoint: should be 'announced', 'ip' or 'hostname'"),
    ],
)
def test_cluster_fault(faults, options, fault):
    [found] = faults(f"cluster: {{{options}}}")
    assert found.startswith(f"1: {fault}")


def test_two_passwords(faults, tmp_path):
    (tmp_path / "secret").write_text("x")
    assert faults(SEEDS + "clients: {password: x, password_file: secret}") == [
        "2: clients.password: either password or password_file, not both"
    ]


def test_a_fault_of_the_text_is_not_followed_by_one_of_the_value(faults, monkeypatch):
    monkeypatch.delenv("MISSING", raising=False)
    assert faults(SEEDS + "clients: {max_clients: '${MISSING}'}") == [
        "2: clients.max_clients: environment variable MISSING is not set"
    ]


@pytest.mark.parametrize("text", ["", "cluster:\n", "log: {}\n"])
def test_seeds_are_required(faults, text):
    [found] = faults(text)
    assert found.endswith("cluster.seeds: is required")


def test_missing_file_is_one_fault(tmp_path):
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigFaults) as raised:
        config.load(path)
    assert str(raised.value) == f"{path}: cannot read: No such file or directory"


def test_faults_read_as_file_line_key_reason(tmp_path):
    (tmp_path / "base.yaml").write_text("requests:\n  timeuot: 1s\n")
    path = tmp_path / "proxy.yaml"
    path.write_text("include: [base.yaml]\n" + SEEDS + "log: {formt: json}\n")
    with pytest.raises(ConfigFaults) as raised:
        config.load(path)
    assert str(raised.value).splitlines() == [
        f"{tmp_path}/base.yaml:2: requests.timeuot: unknown option 'timeuot', did you mean 'timeout'?",
        f"{path}:3: log.formt: unknown option 'formt', did you mean 'format'?",
    ]


def test_seeds_of_the_command_line():
    with pytest.raises(ConfigFaults) as raised:
        config.from_seeds(["a:1", "b"])
    assert str(raised.value) == "command line: cluster.seeds[1]: 'b' has no port: host:port"
