"""The contracts of pyproject.toml held against the compiled modules, which import-linter does not see.

Read from the .pyx and .pxd: `cimport` and `import` alike. The rules themselves stand in one place, [tool.importlinter].
"""

import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}
SOURCES = sorted([*ROOT.glob("proxy/**/*.pyx"), *ROOT.glob("proxy/**/*.pxd")])
IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+(.+)|c?import\s+(.+))$", re.MULTILINE)
HEADER = "# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False"


def imported(text: str) -> set[str]:
    """Absolute names of the modules a Cython source names; for `from a import b` both `a` and `a.b`."""
    names = set()
    joined = re.sub(r"\(([^)]*)\)", lambda found: found[1].replace("\n", " "), text)  # from a import (b,\n c)
    for module, members, modules in IMPORT.findall(joined):
        if module:
            names |= {module} | {f"{module}.{member.split()[0]}" for member in members.split(",") if member.split()}
        else:
            names |= {name.split()[0] for name in modules.split("#")[0].split(",") if name.split()}
    return names


def layers() -> list[tuple[set[str], bool]]:
    """Top first: the modules of a layer, and whether they are independent of one another."""
    return [
        ({name.strip(" ()") for name in re.split(r"[|:]", layer)}, "|" in layer)
        for layer in CONTRACTS["layers"]["layers"]
    ]


def layer_faults(module: str, names: set[str]) -> list[str]:
    """Imports of a proxy module that point up, or sideways between independent ones."""
    place = {name: (n, independent) for n, (members, independent) in enumerate(layers()) for name in members}
    own = module.split(".")[1]
    faults = []
    for name in sorted(names):
        parts = name.split(".")
        if parts[0] != "proxy" or len(parts) < 2 or parts[1] == own:
            continue
        if parts[1] not in place:
            faults.append(f"{name} has no layer")
        elif place[parts[1]][0] < place[own][0] or (place[parts[1]] == place[own] and place[own][1]):
            faults.append(f"{module} must not import {name}")
    return faults


def forbidden_faults(module: str, names: set[str]) -> list[str]:
    """Imports that a contract of type `forbidden` rules out for the module."""
    faults = []
    for contract in CONTRACTS.values():
        if contract["type"] != "forbidden":
            continue
        if not any(f"{module}.".startswith(f"{source}.") for source in contract["source_modules"]):
            continue
        for name in sorted(names):
            target = next((one for one in contract["forbidden_modules"] if f"{name}.".startswith(f"{one}.")), None)
            excepted = (one.split(" -> ") for one in contract.get("ignore_imports", []))
            if target and not any(fnmatchcase(module, who) and what == target for who, what in excepted):
                faults.append(f"{module} must not import {name}: {contract['name']}")
    return faults


@pytest.mark.parametrize("source", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_compiled_module_keeps_its_layer(source):
    module = ".".join(source.relative_to(ROOT).with_suffix("").parts)
    names = imported(source.read_text())
    assert layer_faults(module, names) + forbidden_faults(module, names) == []


def test_there_are_compiled_modules():
    assert {path.suffix for path in SOURCES} == {".pyx", ".pxd"}


@pytest.mark.parametrize(
    "source",
    [path for path in SOURCES if path.suffix == ".pyx"],
    ids=[str(path.relative_to(ROOT)) for path in SOURCES if path.suffix == ".pyx"],
)
def test_compiled_module_has_its_directives(source):
    first, second = source.read_text().splitlines()[:2]
    assert first == HEADER
    assert second.startswith('"""')


# The checks can fail


def test_every_spelling_of_an_import_is_seen():
    text = """
from proxy.forward.reactor cimport Peer, Reactor  # why
from proxy.resp cimport scanner as s
from proxy.resp.encode import (
    a,
    b,
)
cimport proxy.cluster.slot
import asyncio, logging as l
    import redis
"""
    assert imported(text) >= {
        "proxy.forward.reactor",
        "proxy.resp",
        "proxy.resp.scanner",
        "proxy.resp.encode",
        "proxy.cluster.slot",
        "asyncio",
        "logging",
        "redis",
    }


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("proxy.resp.scanner", "proxy.commands.keys"),
        ("proxy.commands.keys", "proxy.cluster.slot"),
        ("proxy.cluster.slot", "proxy.forward.buffer"),
        ("proxy.forward.client", "proxy.serve.local"),
        ("proxy.forward.client", "proxy.config.models"),
        ("proxy.forward.client", "proxy.nowhere"),
    ],
)
def test_wrong_direction_is_a_fault(module, name):
    assert layer_faults(module, {name})


def test_right_direction_is_none():
    assert not layer_faults("proxy.forward.client", {"proxy.commands.lookup", "proxy.cluster.slot", "proxy.resp"})
    assert not layer_faults("proxy.forward.client", {"proxy.forward.buffer", "libc.string"})


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("proxy.forward.client", "asyncio"),
        ("proxy.cluster.slot", "logging.handlers"),
        ("proxy.resp.readers", "hiredis"),
        ("proxy.serve.x", "redis.exceptions"),
        ("proxy.forward.counters", "prometheus_client"),
    ],
)
def test_forbidden_import_is_a_fault(module, name):
    assert forbidden_faults(module, {name})


def test_permitted_imports_are_none():
    assert not forbidden_faults("proxy.resp.decode", {"hiredis"})
    assert not forbidden_faults("proxy.control.node_client", {"redis.asyncio"})
    assert not forbidden_faults("proxy.forward.client", {"asyncio_free", "libc"})
