"""YAML files as plain values, with the file and line of every key.

Why: pydantic knows what is wrong but not where; YAML's own constructor forgets positions and accepts a key that is
given twice. What a value means is decided in proxy.config.models. Called by that, and by proxy.options and check.

Invariants: a fault is collected, never raised, so that one run reports all of them; `${NAME}` is replaced in values
only (`$${` stands for `${`); an included file gives only what the including one does not say itself.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Key = tuple[str | int, ...]
TEXT_TAG = "tag:yaml.org,2002:str"
VARIABLE = re.compile(r"\$(\$?)\{([^}]*)\}")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
INCLUDE_DEPTH = 8
COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing wrong. line is 1-based, 0 = the file as a whole; key is dotted (`listeners[0].address`) or empty."""

    file: str
    line: int
    key: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.reason}" if self.key else f"{place}: {self.reason}"


class ConfigFaults(Exception):
    """A configuration that cannot be run; str() is one line per fault, in the order of the file."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = sorted(set(faults))
        super().__init__("\n".join(map(str, self.faults)))


@dataclass(slots=True)
class Source:
    """What was read: plain values, where each key stands (file, line), and what was wrong so far.

    wrong: the keys whose values are not what was meant. with_secrets: the files in which a password is written.
    incomplete: a file could not be read, so that what is missing may be there.
    """

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    marks: dict[Key, tuple[str, int]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    wrong: set[Key] = field(default_factory=set)
    with_secrets: set[str] = field(default_factory=set)
    incomplete: bool = False

    def fault(self, key: Key, reason: str) -> None:
        """Adds a fault where the key stands, or where the nearest key around it does."""
        around = next((key[:n] for n in range(len(key), 0, -1) if key[:n] in self.marks), ())
        file, line = self.marks.get(around, (self.file, 0))
        self.wrong.add(key)
        self.faults.append(Fault(file, line, spelt(key), reason))

    def unreadable(self, line: int, reason: str) -> None:
        """Adds a fault of the file itself."""
        self.incomplete = True
        self.faults.append(Fault(self.file, line, "", reason))


def spelt(key: Key) -> str:
    """('listeners', 0, 'address') -> `listeners[0].address`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in key).removeprefix(".")


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the known word closest to one that is not, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean '{close[0]}'?" if close else ""


def read(path: Path, data: bytes | None = None, depth: int = 0) -> Source:
    """Reads one file (data: its content, when there is no such file) and what it includes; never raises: Source.faults.

    Names of included files are relative to its folder.
    """
    source = Source(str(path))
    try:
        text = (path.read_bytes() if data is None else data).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot read: {error.strerror}" if isinstance(error, OSError) else "not UTF-8 text"
        source.unreadable(0, reason)
        return source
    values = parse(text, source)
    if isinstance(values, dict):
        source.values = values
    elif values is not None:
        source.unreadable(1, "should be a mapping of sections")
    names = source.values.get("include", [])
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        found = [(file, ("include", n)) for n, name in enumerate(names) for file in _included(path.parent, name)]
        for file, key in reversed(found):
            _include(file, key, source, depth)
    return source


def parse(text: str, source: Source) -> Any:
    """The plain value of a text; None when it is empty, or no YAML: then source is unreadable."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            return _value(loader, root, (), source, ()) if root is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(filter(None, (error.context, error.problem)))
        source.unreadable(mark.line + 1 if mark else 0, f"not YAML: {reason}")
    except (yaml.YAMLError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        source.unreadable(0, f"not YAML: {reason}")
    return None


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """What above says, and what only below says; section by section."""
    both = below | above
    for name in below.keys() & above.keys():
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            both[name] = merged(below[name], above[name])
    return both


def _included(folder: Path, name: str) -> list[Path]:
    """The files meant by one entry of `include`: a name, or a pattern, which need not match any."""
    if not glob.has_magic(name) or (folder / name).exists():
        return [folder / name]
    return [folder / found for found in sorted(glob.glob(name, root_dir=folder)) if not (folder / found).is_dir()]


def _include(path: Path, key: Key, source: Source, depth: int) -> None:
    if depth == INCLUDE_DEPTH:
        source.fault(key, f"more than {INCLUDE_DEPTH} files deep: does a file include itself?")
        return
    inner = read(path, depth=depth + 1)
    source.incomplete |= inner.incomplete
    if not inner.marks and inner.incomplete:  # the fault of the including file
        source.fault(key, "; ".join(map(str, inner.faults)))
        return
    inner.values.pop("include", None)
    source.faults += inner.faults
    source.wrong |= inner.wrong
    source.with_secrets |= inner.with_secrets
    source.values = merged(inner.values, source.values)
    source.marks = inner.marks | source.marks


def _value(loader: yaml.SafeLoader, node: yaml.Node, key: Key, source: Source, above: tuple[yaml.Node, ...]) -> Any:
    source.marks.setdefault(key, (source.file, node.start_mark.line + 1))
    if node in above:
        source.fault(key, "contains itself")
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, key, source, (*above, node))
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*key, n), source, (*above, node)) for n, item in enumerate(node.value)]
    # The text as written where it is text to YAML; numbers, booleans and null as YAML reads them.
    if node.tag != TEXT_TAG:
        return loader.construct_object(node)
    text = str(node.value)
    if key[-1:] in (("password",), ("admin_password",)) and text and not VARIABLE.fullmatch(text):
        source.with_secrets.add(source.file)
    return _substituted(text, key, source)


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, key: Key, source: Source, above: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name_node, value_node in node.value:
        line = name_node.start_mark.line + 1
        if not isinstance(name_node, yaml.ScalarNode):
            source.faults.append(Fault(source.file, line, spelt(key), "a key should be text"))
            continue
        name = str(name_node.value)
        if name in values:
            first = source.marks[(*key, name)][1]
            source.faults.append(Fault(source.file, line, spelt((*key, name)), f"given twice, first on line {first}"))
            continue
        source.marks[(*key, name)] = (source.file, line)
        values[name] = _value(loader, value_node, (*key, name), source, above)
    return values


def _substituted(text: str, key: Key, source: Source) -> str:
    def value_of(found: re.Match[str]) -> str:
        escaped, name = found.groups()
        if escaped:
            return f"${{{name}}}"
        if not VARIABLE_NAME.fullmatch(name):
            source.fault(key, f"'${{{name}}}' does not name an environment variable (a literal ${{ is written $${{)")
        elif name not in os.environ:
            source.fault(key, f"environment variable {name} is not set")
        return os.environ.get(name, "")

    return VARIABLE.sub(value_of, text)
