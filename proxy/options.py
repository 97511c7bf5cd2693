"""Where the settings come from: the file, the command line laid over it, and passwords from the environment.

Why: a container or a trial should not need a file. What is given here is checked with the file's options, by the same
rules, and a fault names its place. Called by proxy.cli, when it runs or checks a configuration, and at every reload.

Invariants: the command line counts more than the file, the environment less; no fault and no message shows a password.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from proxy.config.faults import Conflict
from proxy.config.file import COMMAND_LINE, Key, Source, parse, read, spelt
from proxy.config.models import Settings, settings_of

Further = Callable[[Settings], Iterable[Conflict]]

SCHEME = "redis://"
REDIS_PORT = 6379
# Where the password of a section comes from when neither the file nor the command line gives one.
ENVIRONMENT = {"cluster": "REDIS_PROXY_PASSWORD", "clients": "REDIS_PROXY_CLIENT_PASSWORD"}


class Usage(Exception):
    """The command line cannot be understood; the text is one sentence."""


class Yaml(str):
    """A value as text, still to be read as YAML."""


class Configuration:
    """What the command line says of the configuration, and reading all of it, as often as wanted."""

    def __init__(
        self,
        *,
        file: str = "",
        data: bytes | None = None,
        seeds: Iterable[str] = (),
        listen: Iterable[str] = (),
        admin: str | None = None,
        settings: Iterable[str] = (),
        password_file: str | None = None,
    ) -> None:
        """Usage when a word cannot be understood. file: empty = seeds; data: what standard input held in its place."""
        self.data = data
        self.place = "standard input" if data is not None else file or COMMAND_LINE  # as faults name it
        self.path = Path(file) if file and data is None else None  # what can be read again
        given = read_seeds(seeds)
        self._values = {} if file else {"cluster": {"seeds": list(given.nodes)}}
        self._over = given.options()
        if addresses := list(listen):
            self._over.append(("listeners", [{"address": address} for address in addresses]))
        if admin is not None:
            self._over.append(("admin.address", admin))
        if password_file:  # relative to the working folder, as other files of the command line
            self._over.append(("cluster.password_file", os.path.abspath(password_file)))
        self._over += read_words(settings)

    def load(self, further: Further = lambda settings: ()) -> Settings:
        """The settings, read now; ConfigFaults. further: finds more conflicts."""
        path = Path(self.place)
        source = Source(COMMAND_LINE, copy.deepcopy(self._values)) if self._values else read(path, self.data)
        lay_over(source, self._over)
        add_passwords(source)
        return settings_of(source, path.parent, further)


@dataclass(frozen=True, slots=True)
class Seeds:
    """Nodes of the cluster as host:port, and the user and password all of them were given with, if any."""

    nodes: tuple[str, ...] = ()
    username: str = ""
    password: str = ""

    def options(self) -> list[tuple[str, object]]:
        """The dotted keys and values of what was given."""
        found = [("cluster.username", self.username), ("cluster.password", self.password)]
        return [(key, value) for key, value in found if value]


def read_seeds(words: Iterable[str]) -> Seeds:
    """Reads `a:1`, `a:1,b:2` and `redis://user:password@a:1,b:2`; Usage when a URL is none or credentials differ."""
    nodes: list[str] = []
    credentials: set[tuple[str, str]] = set()
    for word in words:
        for part in re.split(r",(?=rediss?://)", word):
            if "://" not in part:
                if "@" in part:  # not quoted: it may be a password
                    raise Usage("a seed with user or password is written redis://user:password@host:port")
                nodes += part.split(",")
                continue
            if not part.startswith(SCHEME):
                raise Usage(f"a seed is written host:port or {SCHEME}..., not {part.partition('://')[0]}://...")
            account, at, hosts = part.removeprefix(SCHEME).rpartition("@")
            hosts, _, database = hosts.partition("/")
            if database not in ("", "0"):
                raise Usage("a seed has no database: a cluster has number 0 only")
            nodes += [host if re.search(r":\d*$", host) else f"{host}:{REDIS_PORT}" for host in hosts.split(",")]
            if at:
                username, _, password = account.partition(":")
                credentials.add((unquote(username), unquote(password)))
    if len(credentials) > 1:
        raise Usage("the seeds have different users or passwords, but the proxy has one of each for all nodes")
    username, password = credentials.pop() if credentials else ("", "")
    return Seeds(tuple(nodes), username, password)


def read_words(words: Iterable[str]) -> list[tuple[str, object]]:
    """Reads KEY=VALUE words; Usage for one that is none."""
    found: list[tuple[str, object]] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise Usage("--set takes key=value, such as --set clients.max_clients=5000")
        found.append((key, Yaml(value)))
    return found


def lay_over(source: Source, options: Iterable[tuple[str, object]], place: str = COMMAND_LINE) -> None:
    """Gives options, by their dotted keys, values that count more than what was read; place: named in their faults."""
    for dotted, value in options:
        key: Key = tuple(dotted.split("."))
        section: Any = source.values
        for n, step in enumerate(key[:-1], 1):
            source.marks.setdefault(key[:n], (place, 0))
            if isinstance(section, dict):
                section[step] = section = section.get(step) or {}
        source.marks = {one: mark for one, mark in source.marks.items() if one[: len(key)] != key}
        source.marks[key] = (place, 0)
        if isinstance(value, Yaml):
            part = Source(place)
            value = parse(value, part)
            for fault in part.faults:
                source.fault(key, fault.reason)
        if key == ("include",):
            source.fault(key, "can be given in a file only")
        elif isinstance(section, dict):
            section[key[-1]] = value
        else:
            source.fault(key, f"'{spelt(key[:-1])}' is not a section")


def add_passwords(source: Source, environment: Mapping[str, str] = os.environ) -> None:
    """Gives each section without a password the one that stands in the environment."""
    for section, name in ENVIRONMENT.items():
        given = source.values.get(section) or {}
        secret = environment.get(name)
        if secret and isinstance(given, dict) and not (given.get("password") or given.get("password_file")):
            lay_over(source, [(f"{section}.password", secret)], f"environment variable {name}")
