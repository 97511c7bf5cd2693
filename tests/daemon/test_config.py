"""The command line and the configuration's faults, as an operator meets them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.embedded import EmbeddedCluster
from tests.support.proxyd import COMMAND, ROOT, ProxyDaemon, occupied_port, run_cli

StartProxy = Callable[..., ProxyDaemon]

GOOD = """\
listeners:
  - address: "127.0.0.1:7617"
cluster:
  seeds: ["127.0.0.1:7000"]
"""

FAULTS = {
    "unknown section": (GOOD + "nosuch: 1\n", 5, "nosuch"),
    "unknown key": (GOOD + "requests:\n  timeot: 5s\n", 6, "requests.timeot"),
    "duration without unit": (GOOD + "requests:\n  timeout: 5\n", 6, "requests.timeout"),
    "not a duration": (GOOD + "requests:\n  timeout: soon\n", 6, "requests.timeout"),
    "not a size": (GOOD + "clients:\n  output_soft_limit: big\n", 6, "clients.output_soft_limit"),
    "not a read policy": (GOOD.replace('7617"\n', '7617"\n    reads: nearest\n'), 3, "listeners[0].reads"),
    "seed without port": (GOOD.replace("127.0.0.1:7000", "127.0.0.1"), 4, "cluster.seeds[0]"),
    "no seeds": ("cluster:\n  seeds: []\n", 2, "cluster.seeds"),
    "not a mapping": ("cluster: 5\n", 1, "cluster"),
    "no number of workers": (GOOD + "workers: many\n", 5, "workers"),
    "nearly an option": (GOOD + "drain:\n  dealy: 5s\n", 6, "drain.dealy"),
    "not a yes or no": (GOOD + "ready:\n  partial: perhaps\n", 6, "ready.partial"),
    "nobody to give the socket to": (
        GOOD.replace('"127.0.0.1:7617"', "unix:/x\n    owner: no-such-user"),
        3,
        "listeners[0].owner",
    ),
    "owner of a port": (GOOD.replace('7617"\n', '7617"\n    owner: ":0"\n'), 3, "listeners[0].owner"),
    "two listeners in one place": (
        GOOD.replace('"127.0.0.1:7617"\n', "unix:/run/x.sock\n  - address: unix:/run/x.sock\n"),
        3,
        "listeners[1].address",
    ),
    "readiness nobody can ask for": (
        GOOD + "ready:\n  partial: true\nadmin:\n  address: off\n",
        6,
        "ready.partial",
    ),
    "open to all without the cluster's password": (
        GOOD.replace("127.0.0.1:7617", "0.0.0.0:7617") + "  password: x\n",
        2,
        "listeners[0].address",
    ),
    "the mask of --print-config": (GOOD + "  password: <secret not shown>\n", 5, "cluster.password"),
    "missing password file": (GOOD + "clients:\n  password_file: nosuch.txt\n", 6, "clients.password_file"),
}


def write(folder: Path, text: str) -> str:
    path = folder / "proxy.yaml"
    path.write_text(text)
    return str(path)


# A start reads the file as -t does: the usual run tries two of them that way, `-m long` the rest.
STARTED = {"unknown section", "missing password file"}


@pytest.mark.parametrize(
    ("name", "words"),
    [pytest.param(name, ["-t"], id=f"check-{name}") for name in FAULTS]
    + [pytest.param(name, [], id=f"run-{name}", marks=[] if name in STARTED else pytest.mark.long) for name in FAULTS],
)
def test_faults_name_file_line_and_key(name: str, words: list[str], tmp_path: Path) -> None:
    text, line, key = FAULTS[name]
    path = write(tmp_path, text)
    done = run_cli(*words, "-c", path)
    assert done.returncode == 78
    assert f"{path}:{line}: {key}: " in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    """Wrong by themselves and wrong together."""
    text = GOOD + "nosuch: 1\nrequests:\n  timeout: soon\n  other: 2\n  retry_backoff_min: 1m\n"
    path = write(tmp_path, text.replace("listeners:\n", "listeners:\n  - address: 127.0.0.1:7617\n", 1))
    done = run_cli("-t", "-c", path)
    told = done.stdout + done.stderr
    assert done.returncode == 78
    assert [line.removeprefix(f"{path}:").split(": ")[:2] for line in told.splitlines()] == [
        ["3", "listeners[1].address"],
        ["6", "nosuch"],
        ["8", "requests.timeout"],
        ["9", "requests.other"],
        ["10", "requests.retry_backoff_min"],
    ]


@pytest.mark.parametrize("text", ["listeners: [\n", "a: b: c\n", "\tx: 1\n", "[1, 2]\n", "just words\n", "\x00\n"])
def test_what_is_no_yaml_mapping(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    done = run_cli("-t", "-c", path)
    assert done.returncode == 78
    assert path in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_good_file_passes(tmp_path: Path) -> None:
    assert run_cli("-t", "-c", write(tmp_path, GOOD)).returncode == 0


@pytest.mark.parametrize("name", ["proxy.yaml", "minimal.yaml"])
def test_the_files_in_the_repository_pass(name: str) -> None:
    path = Path(__file__).parents[2] / "config" / name
    assert run_cli("-t", "-c", str(path)).returncode == 0


def test_a_missing_file(tmp_path: Path) -> None:
    done = run_cli("-c", str(tmp_path / "nosuch.yaml"))
    assert done.returncode == 78
    assert "nosuch.yaml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [[], ["--nosuch"], ["-c"], ["-c", "x.yaml", "127.0.0.1:7000"], ["schema", "x"], ["reload", "--timeout", "x"]],
    ids=["nothing", "unknown option", "no file", "file and seeds", "too many words", "no number"],
)
def test_usage(words: list[str]) -> None:
    done = run_cli(*words)
    assert done.returncode == 2
    assert "usage:" in done.stderr


@pytest.mark.parametrize("seed", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", ":", "[::1"])
def test_a_faulty_seed_on_the_command_line(seed: str) -> None:
    done = run_cli(seed)
    assert done.returncode == 78
    assert done.stderr.startswith("command line: cluster.seeds[0]: ")
    assert "Traceback" not in done.stderr


def test_print_config_masks_secrets(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "clients:\n  password: topsecret\n")
    done = run_cli("--print-config", "-c", path)
    assert done.returncode == 0
    assert "127.0.0.1:7000" in done.stdout
    assert "topsecret" not in done.stdout + done.stderr
    again = run_cli("-t", "-c", write(tmp_path, done.stdout))
    assert again.returncode == 78
    assert ": clients.password: is the mask" in again.stderr
    assert "put the secret here" in again.stderr


def test_print_config_has_every_option_as_the_file_spells_it(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "workers: 3\ndrain:\n  delay: 5s\n")
    first = run_cli("--print-config", "-c", path)
    assert first.returncode == 0
    for line in ("workers: 3", "  delay: 5s", "  timeout: 10s", "  partial: false", "  max_memory: auto"):
        assert line in first.stdout.splitlines()
    second = run_cli("--print-config", "-c", write(tmp_path, first.stdout))
    assert second.stdout == first.stdout


def test_options_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD + "workers: ${WORKERS}\n")
    monkeypatch.setenv("WORKERS", "7")
    assert "workers: 7\n" in run_cli("--print-config", "-c", path).stdout
    monkeypatch.setenv("WORKERS", "1000")
    done = run_cli("-t", "-c", path)
    assert done.stderr == f"{path}:5: workers: should be auto or a number from 1 to 256\n"
    assert done.returncode == 78


def test_version_and_help() -> None:
    assert run_cli("--version").stdout.startswith("redis-proxy ")
    shown = run_cli("--help").stdout
    assert "HOST:PORT" in shown
    for command in ("run", "check", "schema", "demo", "reload", "upgrade", "status", "healthcheck"):
        assert f"\n    {command} " in shown or f"\n    {command}\n" in shown
    assert "--listen" in run_cli("run", "--help").stdout


def test_schema_is_json() -> None:
    import json

    assert json.loads(run_cli("schema").stdout)["properties"]["cluster"]


@pytest.mark.parametrize("words", [["schema"], ["--help"], ["run", "--help"], ["check", "127.0.0.1:1"], ["--version"]])
def test_a_reader_that_leaves_is_no_reason_for_a_traceback(words: list[str]) -> None:
    """`redis-proxy schema | head -1`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([*COMMAND, *words], stdout=write_end, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=30)
    os.close(write_end)
    assert (done.returncode, done.stderr) in [(1, ""), (0, "")]  # argparse does not mind a help nobody reads


def test_standard_input(tmp_path: Path) -> None:
    """Its includes and files are relative to the working folder."""
    write(tmp_path, GOOD)
    (tmp_path / "secret").write_text("x")
    text = "include: [proxy.yaml]\nclients:\n  password_file: secret\n"
    done = on_stdin(text, tmp_path, "-t", "-c", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "standard input: ok\n", "")
    done = on_stdin(text + "nosuch: 1\n", tmp_path, "check", "-c", "-")
    assert (done.returncode, done.stderr) == (78, "standard input:4: nosuch: unknown option 'nosuch'\n")


def on_stdin(text: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*COMMAND, *words], input=text, capture_output=True, text=True, cwd=folder, env=environment, timeout=30
    )


# What a start would open


def test_check_opens_what_a_start_would_open_and_leaves_nothing(tmp_path: Path) -> None:
    text = GOOD + f"log:\n  file: {tmp_path}/new.log\n"
    text = text.replace('"127.0.0.1:7617"\n', f'"127.0.0.1:7617"\n  - address: unix:{tmp_path}/x.sock\n')
    path = write(tmp_path, text)
    assert run_cli("-t", "-c", path).returncode == 0
    assert [one.name for one in tmp_path.iterdir()] == ["proxy.yaml"]


def test_check_finds_what_a_start_could_not_open(tmp_path: Path) -> None:
    text = """\
listeners:
  - address: 203.0.113.1:7617
  - address: unix:/nosuch/folder/x.sock
cluster:
  seeds: ["127.0.0.1:7000"]
log:
  file: /nosuch/folder/proxy.log
admin:
  address: nosuch.invalid:9617
"""
    path = write(tmp_path, text)
    done = run_cli("check", "-c", path)
    assert done.returncode == 78
    found = [line.removeprefix(f"{path}:") for line in done.stderr.splitlines()]
    assert found[:3] == [
        "2: listeners[0].address: 203.0.113.1 is not an address of this machine",
        "3: listeners[1].address: the folder /nosuch/folder does not exist",
        "7: log.file: the folder /nosuch/folder does not exist",
    ]
    assert found[3].startswith("9: admin.address: the host nosuch.invalid is not known: ")
    assert run_cli("--print-config", "-c", path).returncode == 0  # that opens nothing


def test_a_log_that_can_be_opened_but_not_written(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """/dev/full is a disk that is full: a start says so and serves, a reload is refused and changes nothing."""
    full = {"log": {"file": "/dev/full", "level": "error"}}
    daemon = start_proxy(small_cluster.seeds, full)
    text = "cannot write the log /dev/full: No space left on device"
    assert daemon.log == f"redis-proxy: warning: {text}: its lines are lost, and counted\n"
    assert daemon.metric("redis_proxy_log_lines_dropped_total") >= 1
    wrong = "the log cannot be written: No space left on device"
    assert wrong in run_cli("status", "-c", str(daemon.file)).stdout
    path = daemon.folder / "proxy.log"
    daemon.reload({"log": {"file": str(path)}})
    assert wrong not in run_cli("status", "-c", str(daemon.file)).stdout
    daemon.configure(full)
    told = run_cli("reload", "-c", str(daemon.file))
    assert (told.returncode, told.stderr) == (1, f"redis-proxy: not reloaded: {text}\n")
    assert f'reason="{text}"' in path.read_text()  # it goes where it went
    daemon.reload({"log": {"file": str(path)}})


def test_check_does_not_mind_a_running_instance(tmp_path: Path) -> None:
    sock, port = occupied_port()
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "x.sock"))
    with sock, unix:
        text = GOOD.replace("7617", str(port)) + f"admin:\n  address: 127.0.0.1:{port + 1 if port < 65535 else 1}\n"
        path = write(tmp_path, text.replace("cluster:", f"  - address: unix:{tmp_path}/x.sock\ncluster:"))
        assert run_cli("-t", "-c", path).returncode == 0


def test_check_warns(tmp_path: Path) -> None:
    path = write(
        tmp_path, GOOD.replace("127.0.0.1:7617", "0.0.0.0:7617") + "  password: x\nclients:\n  protected_mode: false\n"
    )
    Path(path).chmod(0o640)
    done = run_cli("-t", "-c", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok\n")
    assert done.stderr.splitlines() == [
        f"warning: {path} has a password in it and can be read by other users (mode 0640)",
        "warning: 0.0.0.0:7617 can be used from other machines without a password",
    ]
    Path(path).chmod(0o600)
    assert "has a password" not in run_cli("-t", "-c", path).stderr
