"""proxy.options: what the command line and the environment say, and how it is laid over a file."""

from pathlib import Path

import pytest

from proxy.config.file import Source, read
from proxy.config.models import ConfigFaults
from proxy.options import Configuration, Seeds, Usage, Yaml, add_passwords, lay_over, read_seeds, read_words


def over(source: Source, **options: object) -> Source:
    lay_over(source, [(key.replace("__", "."), value) for key, value in options.items()])
    return source


def told(source: Source) -> list[str]:
    return [str(fault) for fault in source.faults]


# Seeds


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["a:1"], Seeds(("a:1",))),
        (["a:1,b:2", "c:3"], Seeds(("a:1", "b:2", "c:3"))),
        (["redis://a:1"], Seeds(("a:1",))),
        (["redis://a", "redis://[::1]"], Seeds(("a:6379", "[::1]:6379"))),
        (["redis://a:1/0", "redis://b:1/"], Seeds(("a:1", "b:1"))),
        (["redis://u:p%40%2C:x@a:1,b"], Seeds(("a:1", "b:6379"), "u", "p@,:x")),
        (["redis://:p@a:1,redis://:p@b:2", "c:3"], Seeds(("a:1", "b:2", "c:3"), "", "p")),
        (["redis://u:p,q@a:1"], Seeds(("a:1",), "u", "p,q")),
        (["nonsense"], Seeds(("nonsense",))),
    ],
)
def test_seeds(words, seeds):
    assert read_seeds(words) == seeds


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["redis://u:s3cr3t@a:1", "redis://u:other@b:1"], "the seeds have different users or passwords"),
        (["u:s3cr3t@a:1"], "a seed with user or password is written redis://user:password@host:port"),
        (["rediss://u:s3cr3t@a:1"], "a seed is written host:port or redis://..., not rediss://..."),
        (["redis://u:s3cr3t@a:1/5"], "a seed has no database"),
    ],
)
def test_no_seeds(words, sentence):
    with pytest.raises(Usage, match=sentence) as raised:
        read_seeds(words)
    assert "s3cr3t" not in str(raised.value)


# Laid over


def test_laid_over_what_was_read(tmp_path):
    path = tmp_path / "proxy.yaml"
    path.write_text("a: {x: 1, y: [1, 2]}\nb: 1\n")
    source = over(read(path), a__x=2, a__z__deep=3, c=4)
    assert source.values == {"a": {"x": 2, "y": [1, 2], "z": {"deep": 3}}, "b": 1, "c": 4}
    assert source.marks[("a",)] == (str(path), 1)
    assert source.marks[("a", "x")] == ("command line", 0)
    assert source.marks[("a", "z")] == ("command line", 0)


def test_a_replaced_list_leaves_no_places(tmp_path):
    path = tmp_path / "proxy.yaml"
    path.write_text("a:\n  - x: 1\n  - x: 2\n")
    source = over(read(path), a=[{"x": 3}])
    source.fault(("a", 0, "x"), "bad")
    assert told(source) == ["command line: a[0].x: bad"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("yes", True), ("[a:1, b]", ["a:1", "b"]), ("a:1", "a:1"), ("", None), ("250ms", "250ms")],
)
def test_a_value_is_yaml(text, value):
    assert over(Source("f"), a__b=Yaml(text)).values == {"a": {"b": value}}


def test_faults_of_a_value(monkeypatch):
    monkeypatch.delenv("MISSING", raising=False)
    source = over(Source("f", {"n": 5}), a__b=Yaml("[1"), c=Yaml("${MISSING}"), include=Yaml("[x]"), n__m=1)
    assert told(source)[1:] == [
        "command line: c: environment variable MISSING is not set",
        "command line: include: can be given in a file only",
        "command line: n.m: 'n' is not a section",
    ]
    assert told(source)[0].startswith("command line: a.b: not YAML: ")


def test_words():
    assert read_words(["a.b=c=d", "e="]) == [("a.b", "c=d"), ("e", "")]
    for word in ("a", "=b", ""):
        with pytest.raises(Usage, match="--set takes key=value"):
            read_words([word])


# The environment

NAMES = {"REDIS_PROXY_PASSWORD": "s1", "REDIS_PROXY_CLIENT_PASSWORD": "s2"}


@pytest.mark.parametrize(
    ("values", "passwords"),
    [
        ({}, ["s1", "s2"]),
        ({"cluster": None, "clients": {"password": ""}}, ["s1", "s2"]),
        ({"cluster": {"password": "x"}, "clients": {"password_file": "f"}}, ["x", None]),
    ],
)
def test_passwords_of_the_environment(values, passwords):
    source = Source("f", values)
    add_passwords(source, NAMES)
    assert [source.values[name].get("password") for name in ("cluster", "clients")] == passwords


def test_no_password_for_what_is_no_section():
    source = Source("f", {"cluster": 5})
    add_passwords(source, {"REDIS_PROXY_PASSWORD": "s1"})
    assert (source.values, source.faults) == ({"cluster": 5}, [])


def test_a_faulty_password_of_the_environment(monkeypatch):
    monkeypatch.setenv("REDIS_PROXY_PASSWORD", "**********")
    with pytest.raises(ConfigFaults) as raised:
        Configuration(seeds=["a:1"]).load()
    assert str(raised.value).startswith("environment variable REDIS_PROXY_PASSWORD: cluster.password: is the mask")


# All of it


def test_the_command_line_counts_more_than_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("REDIS_PROXY_PASSWORD", "s1")
    (tmp_path / "secret").write_text("s2")
    assert Configuration(seeds=["redis://:s3@a:1"]).load().cluster.secret == "s3"
    assert Configuration(seeds=["a:1"], password_file=str(tmp_path / "secret")).load().cluster.secret == "s2"
    assert Configuration(seeds=["a:1"], settings=["cluster.password=s4"]).load().cluster.secret == "s4"


def test_two_passwords_are_a_fault(tmp_path):
    path = tmp_path / "proxy.yaml"
    path.write_text("cluster: {seeds: ['a:1'], password: x}\n")
    (tmp_path / "secret").write_text("s2")
    with pytest.raises(ConfigFaults, match="either password or password_file, not both"):
        Configuration(file=str(path), password_file=str(tmp_path / "secret")).load()


def test_read_again_as_often_as_wanted(tmp_path):
    path = tmp_path / "proxy.yaml"
    path.write_text("cluster: {seeds: ['a:1']}\n")
    from_file = Configuration(file=str(path), settings=["requests.timeout=9s"])
    from_seeds = Configuration(seeds=["a:1"], listen=["127.0.0.1:1"], settings=["requests.timeout=9s"])
    assert from_file.load() == from_file.load() != from_seeds.load() == from_seeds.load()
    assert (from_file.place, from_file.path) == (str(path), Path(path))
    assert (from_seeds.place, from_seeds.path) == ("command line", None)


def test_faults_of_listeners_on_the_command_line():
    with pytest.raises(ConfigFaults) as raised:
        Configuration(seeds=["a:1"], listen=["127.0.0.1:1", "nowhere"], admin="x").load()
    assert str(raised.value).splitlines() == [
        "command line: admin.address: 'x' has no port: host:port",
        "command line: listeners[1].address: 'nowhere' has no port: host:port",
    ]
