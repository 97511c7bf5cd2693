"""proxy.cli: which words mean what, what is imported for them, and what proxy.run is given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import cli

ROOT = Path(__file__).parents[2]
TEXT = "cluster: {seeds: ['10.0.0.1:7001']}\nclients: {max_clients: 5}\n"


@pytest.fixture
def signals() -> Iterator[None]:
    """cli changes them for the whole process."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    interrupt = signal.getsignal(signal.SIGINT)
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGINT, interrupt)


@pytest.fixture
def run(signals: None, monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What proxy.run.run was called with; it returns 7."""
    calls: list[SimpleNamespace] = []

    def record(settings: Any, **given: Any) -> int:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        calls.append(SimpleNamespace(settings=settings, blocked=blocked, **given))
        return 7

    monkeypatch.setitem(sys.modules, "proxy.run", SimpleNamespace(run=record))
    for name in ("REDIS_PROXY_PASSWORD", "REDIS_PROXY_CLIENT_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("words", [[], ["run"]])
def test_run_with_a_file(run, file, words):
    assert cli.main([*words, "-c", str(file)]) == 7
    [call] = run
    assert call.settings.clients.max_clients == 5
    assert (call.source, call.no_upgrade, call.warnings) == (str(file), "", [])
    assert {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2} <= call.blocked
    file.write_text(TEXT.replace("5", "6"))
    assert call.load().clients.max_clients == 6


def test_what_was_set_stays_at_a_reload(run, file):
    assert cli.main(["-c", str(file), "--set", "clients.max_clients=9", "--listen", "127.0.0.1:0"]) == 7
    [call] = run
    assert call.settings.clients.max_clients == 9
    file.write_text(TEXT + "requests: {timeout: 9s}\n")
    again = call.load()
    assert (again.clients.max_clients, again.requests.timeout) == (9, 9.0)
    assert [str(one.address) for one in again.listeners] == ["127.0.0.1:0"]


def test_run_with_seeds(run):
    words = ["a:1,b:2", "--listen", "127.0.0.1:1", "c:3", "--listen", "unix:/x", "--admin", "off", "--set", "workers=2"]
    assert cli.main(words) == 7
    [call] = run
    assert [str(seed) for seed in call.settings.cluster.seeds] == ["a:1", "b:2", "c:3"]
    assert [str(one.address) for one in call.settings.listeners] == ["127.0.0.1:1", "unix:/x"]
    assert (call.settings.admin.address, call.settings.workers) == (None, 2)
    assert (call.source, call.load, call.no_upgrade) == ("command line", None, "")


def test_run_with_a_password_file(run, tmp_path, monkeypatch):
    """Relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("s3cr3t\n")
    assert cli.main(["a:1", "--password-file", "secret"]) == 7
    assert run[0].settings.cluster.secret == "s3cr3t"


def test_run_with_passwords_of_the_environment(run, file, monkeypatch):
    monkeypatch.setenv("REDIS_PROXY_PASSWORD", "s1")
    monkeypatch.setenv("REDIS_PROXY_CLIENT_PASSWORD", "s2")
    for words in (["redis://u@a:1"], ["-c", str(file)]):
        assert cli.main(words) == 7
        assert (run[-1].settings.cluster.secret, run[-1].settings.clients.secret) == ("s1", "s2")


def test_run_from_standard_input(run, tmp_path, monkeypatch):
    """What a successor would have to read is gone."""
    (tmp_path / "in").write_text(TEXT)
    with open(tmp_path / "in") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert cli.main(["-c", "-"]) == 7
    [call] = run
    assert (call.source, call.load) == ("standard input", None)
    assert "standard input" in call.no_upgrade


def test_the_default_file(run, file, monkeypatch, capfd):
    monkeypatch.setattr(cli, "DEFAULT_FILE", str(file))
    assert cli.main([]) == cli.main(["--set", "workers=1"]) == 7
    assert run[0].source == str(file)
    assert cli.main(["a:1"]) == 7
    assert run[2].source == "command line"
    assert cli.main(["check"]) == 0
    assert capfd.readouterr().out == f"{file}: ok\n"


def test_the_default_file_is_not_there(run, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cli, "DEFAULT_FILE", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    sentence = capfd.readouterr().err.splitlines()[-1]
    assert sentence.endswith(f"give -c FILE or the HOST:PORT of at least one node ({tmp_path}/none does not exist)")


def test_warnings_are_given_to_run(run, file):
    assert cli.main(["-c", str(file), "--listen", "0.0.0.0:1"]) == 7
    assert run[0].warnings == ["0.0.0.0:1 can be used from other machines without a password"]


def test_a_faulty_configuration_runs_nothing(run, file, capfd):
    file.write_text(TEXT + "nosuch: 1\n")
    assert cli.main(["-c", str(file), "--set", "clients.max_clients=x", "--set", "log.level=loud"]) == 78
    assert not run
    assert capfd.readouterr().err.splitlines() == [
        f"{file}:3: nosuch: unknown option 'nosuch'",
        "command line: clients.max_clients: should be a whole number",
        "command line: log.level: should be 'debug', 'info', 'warning' or 'error'",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["relaod"], "'relaod' is neither a command nor HOST:PORT, did you mean 'reload'?"),
        (["a:1", "-c", "x"], "give either -c FILE or the HOST:PORT of nodes, not both"),
        (["a:1", "--set", "x"], "--set takes key=value, such as --set clients.max_clients=5000"),
        (["user:s3cr3t@a:1"], "a seed with user or password is written redis://user:password@host:port"),
        (["redis://u:s3cr3t@a:1", "redis://v:s3cr3t@b:1"], "the seeds have different users or passwords, but"),
    ],
)
def test_usage(run, words, sentence, capfd):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert error.splitlines()[-1].startswith(f"redis-proxy run: error: {sentence}")
    assert "s3cr3t" not in error


def test_print_config_of_the_command_line(run, capfd):
    assert cli.main(["redis://u:s3cr3t@a:1", "--print-config"]) == 0
    shown = capfd.readouterr().out
    assert "  username: u\n" in shown
    assert "s3cr3t" not in shown
    assert not run


def test_interrupts_end_the_process_until_run_has_handlers(run, file):
    assert cli.main(["-c", str(file)]) == 7
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_importing_the_module_is_cheap():
    names = ("pydantic", "yaml", "json", "asyncio", "uvloop")
    code = f"import sys, proxy.cli; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr


def test_demo_has_its_own_options(capfd):
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--help"])
    assert ended.value.code == 0
    assert "--admin-port" in capfd.readouterr().out


def test_a_closed_output_is_no_fault():
    """`redis-proxy schema >&-`."""
    done = subprocess.run(
        [sys.executable, "-m", "proxy.cli", "schema"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        preexec_fn=lambda: os.close(1),
    )
    assert (done.returncode, done.stderr) == (0, "")
