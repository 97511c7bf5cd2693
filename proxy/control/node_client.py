"""Control's own connections to nodes: short, few, and apart from those that carry traffic.

Why: learning the topology, probing nodes and reading the command table are a few commands a second, for which
redis-py's connection (address, credentials, RESP2 framing) does all that is needed. Called by the other modules of
proxy.control; the data path never comes here.

Invariants: what goes wrong is a NodeClientError (NodeRefusal when the node has said so), except a server's plain error
reply, which is a value in ask()'s list; every wait ends after the settings' timeout_s; close() always leaves no
socket. Passwords appear in no text and no repr.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio.connection import Connection
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from proxy.cluster.topology import Address
from proxy.control.bounded_parser import BoundedParser
from proxy.system.names import names

LINE_MOST = 500  # characters of an error line that are kept: it goes to the log, and whoever sent it may be broken


class NodeClientError(Exception):
    """A node could not be asked: refused, unreachable, too slow, or it broke off."""


class NodeRefusal(NodeClientError):
    """A node has answered, and does not want to talk with us: it takes no more clients, for example."""


class NodeAuthError(NodeRefusal):
    """A node does not take our credentials, or wants some and we have none."""


class ErrorReply(Exception):
    """A server's error line without its '-', as a value."""


@dataclass(frozen=True, slots=True)
class NodeClientSettings:
    """How to talk to nodes. An empty password sends no AUTH; timeout_s bounds connecting, and each ask()."""

    username: str = ""
    password: str = field(default="", repr=False)
    timeout_s: float = 1.0

    def same_login(self, other: NodeClientSettings) -> bool:
        """Whether a node is told the same user and password."""
        return (self.username, self.password) == (other.username, other.password)


class NodeClient:
    """One open connection; made by connect(), used by one task at a time."""

    def __init__(self, connection: Connection, address: Address, timeout_s: float) -> None:
        self.address = address
        self._connection = connection
        self._timeout_s = timeout_s

    async def ask(self, *commands: Iterable[str | int | bytes]) -> list[Any]:
        """Sends the commands as one pipeline; their replies in order: bytes, int, list, None or ErrorReply.

        NodeClientError when any reply does not come; the connection is of no use after that.
        """
        connection = self._connection
        replies: list[Any] = []
        with _own_errors(self.address):
            async with asyncio.timeout(self._timeout_s):
                packed = connection.pack_commands(commands)
                await connection.send_packed_command(packed, check_health=False)
                for _ in commands:
                    try:
                        replies.append(await connection.read_response(disable_decoding=True))
                    except ResponseError as error:
                        replies.append(ErrorReply(_line(error)))
        return replies

    async def close(self) -> None:
        """Closes the socket; never raises, also while being cancelled."""
        with contextlib.suppress(RedisError, OSError):
            await self._connection.disconnect()


async def connect(address: Address, settings: NodeClientSettings) -> NodeClient:
    """Connects and authenticates. NodeClientError, NodeAuthError.

    Names are resolved anew each time; where the resolver takes more than half of the time, their last known addresses
    are used.
    """
    with _own_errors(address):
        async with asyncio.timeout(settings.timeout_s):
            found = await names.resolve(address.host, address.port, settings.timeout_s / 2)
            for _, where in found[:-1]:
                try:
                    return await _connect(where[0], address, settings)
                except RedisConnectionError as error:
                    if not isinstance(error.__context__, OSError):  # it is the node's word, not the system's
                        raise
            return await _connect(found[-1][1][0], address, settings)


async def _connect(host: str, address: Address, settings: NodeClientSettings) -> NodeClient:
    """At one address of the host. What redis-py raises."""
    connection = Connection(
        host=host,
        port=address.port,
        username=(settings.username or None) if settings.password else None,
        password=settings.password or None,
        protocol=2,
        parser_class=BoundedParser,
        # ask() keeps the time: redis-py would with asyncio.wait_for(), which in Python 3.11 can lose a cancellation.
        socket_timeout=None,
        socket_connect_timeout=settings.timeout_s,
        driver_info=None,
    )
    upstream = NodeClient(connection, address, settings.timeout_s)
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        await upstream.close()
        raise
    return upstream


class StandingClient:
    """A connection to one node for questions now and then: made when it is needed, and anew when it was lost or the
    settings are others. Used by one task, which closes it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._settings = NodeClientSettings()
        self._open: NodeClient | None = None

    async def ask(self, settings: NodeClientSettings, *commands: Iterable[str | int | bytes]) -> list[Any]:
        """As NodeClient.ask()."""
        if settings != self._settings:
            await self.close()
        self._settings = settings
        try:
            if self._open is None:
                self._open = await connect(self._address, settings)
            return await self._open.ask(*commands)
        except NodeClientError:
            await self.close()
            raise

    async def close(self) -> None:
        """Closes what is open; it may be asked again."""
        client, self._open = self._open, None
        if client is not None:
            await client.close()


@contextlib.asynccontextmanager
async def node_client(address: Address, settings: NodeClientSettings) -> AsyncIterator[NodeClient]:
    """connect() and close() around a block."""
    upstream = await connect(address, settings)
    try:
        yield upstream
    finally:
        await upstream.close()


@contextlib.contextmanager
def _own_errors(address: Address) -> Any:
    try:
        yield
    except AuthenticationError as error:
        raise NodeAuthError(_line(error)) from error
    except (TimeoutError, RedisTimeoutError) as error:
        raise NodeClientError(f"{address} does not answer in time") from error
    except ResponseError as error:
        raise NodeRefusal(_line(error)) from error
    except (RedisError, OSError) as error:
        # "ERR max number of clients reached" is a lost connection to redis-py; so is LOADING, from a node of no use.
        kind = NodeRefusal if isinstance(error, RedisError) and error.status_code == "ERR" else NodeClientError
        raise kind(_reason(error)) from error
    except (ValueError, TypeError, AssertionError) as error:
        # What redis-py makes of bytes that are no RESP, or of a connection closed under it.
        raise NodeClientError(f"{address} does not speak RESP: {error}") from error
    except RuntimeError as error:  # uvloop's word for a connection that was reset since the last answer
        raise NodeClientError("Connection reset by peer") from error


def _reason(error: RedisError | OSError) -> str:
    """A server's line, or the system's reason: redis-py hides it behind "Error 111 connecting to"."""
    system = error if isinstance(error, OSError) else error.__context__
    if isinstance(system, OSError) and system.errno:
        return os.strerror(system.errno) if system.errno > 0 else str(system.strerror)
    return _line(error) if isinstance(error, RedisError) else str(error)


def _line(error: RedisError) -> str:
    """The error as the server sent it, its beginning: redis-py splits the code from the text."""
    text = str(error)
    return (f"{error.status_code} {text}" if error.status_code else text)[:LINE_MOST]
