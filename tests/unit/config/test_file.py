"""proxy.config.file: plain values, where they stand, and everything that is wrong with the text."""

from pathlib import Path

import pytest

from proxy.config.file import Fault, Source, nearest, read, spelt


@pytest.fixture
def write(tmp_path):
    def writer(text: str, name: str = "proxy.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return writer


def faults(source: Source) -> list[str]:
    return [f"{Path(fault.file).name}:{fault.line}: {fault.key}: {fault.reason}" for fault in source.faults]


def test_values_and_marks(write):
    source = read(write("a:\n  b: 1\n  c: [x, y]\nd: off\n"))
    assert source.values == {"a": {"b": 1, "c": ["x", "y"]}, "d": False}
    assert not source.faults
    lines = {spelt(key): line for key, (_, line) in source.marks.items()}
    assert lines == {"": 1, "a": 1, "a.b": 2, "a.c": 3, "a.c[0]": 3, "a.c[1]": 3, "d": 4}


def test_fault_of_an_unmarked_key_stands_at_the_nearest_one():
    source = Source("f", marks={(): ("f", 1), ("a",): ("f", 7)})
    source.fault(("a", "b", 0), "bad")
    source.fault(("z",), "bad")
    assert source.faults == [Fault("f", 7, "a.b[0]", "bad"), Fault("f", 1, "z", "bad")]


def test_fault_lines():
    assert str(Fault("f", 3, "a.b", "bad")) == "f:3: a.b: bad"
    assert str(Fault("f", 0, "", "cannot read")) == "f: cannot read"


def test_duplicate_key(write):
    source = read(write("a:\n  b: 1\n  c: 2\n  b: 3\n"))
    assert faults(source) == ["proxy.yaml:4: a.b: given twice, first on line 2"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [1\n", "proxy.yaml:2: : not YAML: while parsing a flow sequence"),
        ("a:\n\t- b\n", "proxy.yaml:2: : not YAML: while scanning for the next token, found character '\\t'"),
        ("a: !!python/object:os.system x\n", "proxy.yaml:1: : not YAML: could not determine a constructor"),
        ("a: *b\n", "proxy.yaml:1: : not YAML: found undefined alias"),
        ("--- 1\n--- 2\n", "proxy.yaml:2: : not YAML: expected a single document"),
        ("- a\n", "proxy.yaml:1: : should be a mapping"),
        ("? [a]\n: 1\n", "proxy.yaml:1: : a key should be text"),
        ("a: \x01\n", "proxy.yaml:0: : not YAML: unacceptable character"),
        ("a: " + "[" * 3000, "proxy.yaml:0: : not YAML: nested too deep"),
        ("a: &x [*x]\n", "proxy.yaml:1: a[0]: contains itself"),
    ],
)
def test_bad_text(write, text, fault):
    [found] = faults(read(write(text)))
    assert found.startswith(fault)


def test_not_text_and_not_there(tmp_path):
    (tmp_path / "proxy.yaml").write_bytes(b"\xff\xfe")
    assert faults(read(tmp_path / "proxy.yaml")) == ["proxy.yaml:0: : not UTF-8 text"]
    assert faults(read(tmp_path / "none.yaml")) == ["none.yaml:0: : cannot read: No such file or directory"]
    assert read(tmp_path / "none.yaml").incomplete


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null\n"])
def test_empty(write, text):
    source = read(write(text))
    assert source.values == {}
    assert not source.faults


def test_environment(write, monkeypatch):
    monkeypatch.setenv("NODE", "10.0.0.1")
    monkeypatch.setenv("PASSWORD", "0x1f: [${NODE}]")
    source = read(write('a: "${NODE}:6379"\nb: ${PASSWORD}\nc: $${NODE} and $NODE\n'))
    assert source.values == {"a": "10.0.0.1:6379", "b": "0x1f: [${NODE}]", "c": "${NODE} and $NODE"}


def test_environment_faults(write, monkeypatch):
    monkeypatch.delenv("MISSING", raising=False)
    source = read(write("a:\n  - ${MISSING}\n  - ${not a name}\n"))
    assert faults(source) == [
        "proxy.yaml:2: a[0]: environment variable MISSING is not set",
        "proxy.yaml:3: a[1]: '${not a name}' does not name an environment variable (a literal ${ is written $${)",
    ]


def test_include_fills_in(write):
    write("a: {x: 1, y: 1, z: 1}\nlist: [1, 2]\n", "base.yaml")
    write("a: {y: 2}\nb: 2\n", "later.yaml")
    source = read(write("include: [base.yaml, later.yaml]\na: {z: 3}\nlist: [9]\n"))
    assert source.values == {
        "include": ["base.yaml", "later.yaml"],
        "a": {"x": 1, "y": 2, "z": 3},
        "list": [9],
        "b": 2,
    }
    places = {spelt(key): f"{Path(file).name}:{line}" for key, (file, line) in source.marks.items()}
    assert places["a.x"] == "base.yaml:1"
    assert places["a.y"] == "later.yaml:1"
    assert places["a.z"] == "proxy.yaml:2"


def test_include_faults_stand_in_their_files(write):
    write("a: 1\na: 2\n", "base.yaml")
    source = read(write("include:\n  - base.yaml\n  - none.yaml\n"))
    found = sorted(faults(source))
    assert found[0] == "base.yaml:2: a: given twice, first on line 1"
    assert found[1].startswith("proxy.yaml:3: include[1]: ")
    assert found[1].endswith("none.yaml: cannot read: No such file or directory")


def test_include_of_itself_ends(write):
    [found] = faults(read(write("include: [proxy.yaml]\n")))
    assert found.endswith("include[0]: more than 8 files deep: does a file include itself?")


def test_include_takes_patterns(write, tmp_path):
    (tmp_path / "conf.d" / "folder.yaml").mkdir(parents=True)
    write("a: 1\nb: 1\n", "conf.d/20-b.yaml")
    write("a: 2\nc: 2\n", "conf.d/10-a.yaml")
    write("d: 4\n", "conf.d/.hidden.yaml")
    source = read(write("include: ['conf.d/*.yaml', 'none/*.yaml', 'x[12].yaml']\nc: 3\n"))
    assert not source.faults
    assert {name: source.values[name] for name in "abc"} == {"a": 1, "b": 1, "c": 3}  # sorted: the last one counts
    assert "d" not in source.values
    assert Path(source.marks[("b",)][0]).name == "20-b.yaml"


def test_a_file_whose_name_looks_like_a_pattern(write):
    write("a: 1\n", "x[12].yaml")
    assert read(write("include: ['x[12].yaml']\n")).values["a"] == 1


def test_a_fault_in_a_file_found_by_a_pattern(write):
    write("a: [1\n", "conf-a.yaml")
    [found] = faults(read(write("include: ['conf-*.yaml']\n")))
    assert found.startswith("conf-a.yaml:2: : not YAML") or found.startswith("proxy.yaml:1: include[0]: ")


def test_content_that_is_not_in_a_file(write, tmp_path, monkeypatch):
    """Standard input: what it includes is relative to the working folder."""
    write("a: 1\n", "base.yaml")
    monkeypatch.chdir(tmp_path)
    source = read(Path("standard input"), b"include: [base.yaml]\nb: 1\nb: 2\n")
    assert source.values == {"include": ["base.yaml"], "a": 1, "b": 1}
    assert faults(source) == ["standard input:3: b: given twice, first on line 2"]


def test_which_files_have_secrets(write, tmp_path, monkeypatch):
    monkeypatch.setenv("PASSWORD", "x")
    write("cluster: {password: x}\n", "base.yaml")
    write("cluster: {password: '${PASSWORD}', username: u}\nclients: {password: ''}\n", "none.yaml")
    source = read(write("include: [base.yaml, none.yaml]\n"))
    assert source.with_secrets == {str(tmp_path / "base.yaml")}


def test_nearest():
    assert nearest("sedes", ["seeds", "password"]) == ", did you mean 'seeds'?"
    assert nearest("zzz", ["seeds"]) == ""
