"""BIRD's control socket, spoken directly: no `birdc` process.

A reply is lines `NNNN-text` (more follows), `NNNN text` (last) or ` text` (continues the line before, same code); codes
8xxx and 9xxx are errors, the first line after connecting is `0001` (node-and-cli 2.12.9). Every call opens its own
connection, so a BIRD that was restarted meanwhile needs no care. Each call takes at most `timeout` seconds, then raises
RoutingError.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterable, Iterator

from calico_plugin.deadline import Deadline
from calico_plugin.errors import DeadlineExceeded, RoutingError

TIMEOUT = 2.0
_FINAL = re.compile(rb"^\d{4} ", re.MULTILINE)
_LINE = re.compile(r"(\d{4})([- ])(.*)")
_PATH = re.compile(r"(?P<net>\S*)\s+(?P<kind>\w+) \[(?P<protocol>\S+) [^]]*\](?P<chosen> \*)?")
_HOP = re.compile(r"\s+(?:via (?P<gateway>\S+) on|dev) (?P<interface>\S+)")


class NotRunning(RoutingError):
    """Nobody listens on the control socket."""


class CommandRefused(RoutingError):
    """BIRD answered with an error, whose words the text has."""


@dataclass(frozen=True, slots=True)
class Line:
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Status:
    """What `show status` says; times as BIRD prints them. `graceful_restart`: it still waits for sessions."""

    version: str
    router_id: str
    last_reboot: str
    last_reconfiguration: str
    graceful_restart: bool
    message: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """A row of `show protocols all`.

    `state` is BIRD's protocol state (up, start, down), `info` the whole last column, for BGP the session's state and
    its last error. `detail` holds the `Name: value` lines below the row (`BGP state`, `Last error` …).
    """

    name: str
    kind: str
    table: str
    state: str
    since: str
    info: str
    detail: dict[str, str]

    @property
    def established(self) -> bool:
        return self.kind == "BGP" and self.detail.get("BGP state", self.info.split(" ")[0]) == "Established"

    def routes(self) -> dict[str, int]:
        """Numbers of routes, `imported`, `exported` and more as BIRD counts them; empty when it tells none."""
        return {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", self.detail.get("Routes", ""))}


@dataclass(frozen=True, slots=True)
class Route:
    """A path of `show route`: `kind` is unicast, blackhole and the like, `protocol` who told it, `chosen` whether it is
    the one in use. `gateway` and `interface` are those of the first next hop, "" where there is none.
    """

    destination: str
    kind: str
    protocol: str
    chosen: bool
    gateway: str = ""
    interface: str = ""


class BirdClient:
    """Commands to one BIRD. `path` is its control socket."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self.path, self.timeout = path, timeout

    def command(self, text: str) -> tuple[Line, ...]:
        """One command, its lines. Raises NotRunning, CommandRefused, or RoutingError when no answer comes in time."""
        deadline = Deadline(self.timeout)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(deadline.check("BIRD"))
                connection.connect(str(self.path))
                _read_reply(connection, deadline)
                connection.sendall(text.encode() + b"\n")
                lines = tuple(parse_reply(_read_reply(connection, deadline)))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(f"BIRD is not running: nothing listens on {self.path}") from error
        except (TimeoutError, DeadlineExceeded) as error:
            raise RoutingError(f"BIRD did not answer {text!r} within {self.timeout:g} s on {self.path}") from error
        except OSError as error:
            raise RoutingError(f"BIRD's control socket {self.path}: {error}") from error
        _refuse_errors(text, lines)
        return lines

    def status(self) -> Status:
        return parse_status(self.command("show status"))

    def protocols(self) -> tuple[Protocol, ...]:
        """All protocols with their details."""
        return tuple(parse_protocols(self.command("show protocols all")))

    def routes(self, query: str = "") -> tuple[str, ...]:
        """Lines of `show route <query>`."""
        return tuple(line.text for line in self.command(f"show route {query}".strip()))

    def paths(self) -> tuple[Route, ...]:
        """All paths of all tables."""
        return tuple(parse_routes(self.routes()))

    def evaluate(self, expression: str) -> str:
        """The value of an expression, such as a constant of the configuration. Raises CommandRefused."""
        return self.command(f"eval {expression}")[-1].text

    def check(self, path: Path) -> None:
        """Raise CommandRefused with `FILE:line:col message` when BIRD would refuse the configuration."""
        self.command(f"configure check {_quoted(path)}")

    def configure(self, path: Path | None = None) -> str:
        """Load the configuration (the one BIRD was started with, when no path is given); BIRD's answer."""
        lines = self.command(f"configure {_quoted(path)}" if path else "configure")
        return lines[-1].text

    def graceful_restart(self) -> None:
        """End BIRD so that neighbours keep forwarding to us until it is back (or their timer ends)."""
        self.command("graceful restart")

    def down(self) -> None:
        """End BIRD; neighbours withdraw our routes at once."""
        self.command("down")


def _quoted(path: Path) -> str:
    return f'"{path}"'


def _read_reply(connection: socket.socket, deadline: Deadline) -> str:
    """Bytes up to the end of a final line."""
    data = b""
    while not (data.endswith(b"\n") and _FINAL.search(data[data.rfind(b"\n", 0, -1) + 1:])):
        connection.settimeout(deadline.check("BIRD"))
        part = connection.recv(65536)
        if not part:
            # `down` and `graceful restart` may close before the last line is complete.
            if data:
                break
            raise ConnectionResetError("BIRD closed the connection")
        data += part
    return data.decode(errors="replace")


def parse_reply(text: str) -> Iterator[Line]:
    """Lines with their codes; a continuation takes the code of the line before. Asynchronous `+` lines are left out."""
    code = 0
    for raw in text.splitlines():
        match = _LINE.fullmatch(raw)
        if match:
            code = int(match[1])
            yield Line(code, match[3])
        elif raw.startswith(" "):
            yield Line(code, raw[1:])


def _refuse_errors(command: str, lines: tuple[Line, ...]) -> None:
    errors = [line.text for line in lines if line.code >= 8000]
    if errors:
        raise CommandRefused(f"BIRD refused {command.split(' ')[0]}: {'; '.join(errors)}")


def parse_status(lines: tuple[Line, ...]) -> Status:
    def after(prefix: str) -> str:
        return next((line.text.removeprefix(prefix) for line in lines if line.text.startswith(prefix)), "")

    return Status(
        version=next((line.text for line in lines if line.code == 1000), "").removeprefix("BIRD "),
        router_id=after("Router ID is "),
        last_reboot=after("Last reboot on "),
        last_reconfiguration=after("Last reconfiguration on "),
        graceful_restart=any(line.code == 24 for line in lines),
        message=lines[-1].text if lines else "",
    )


def parse_protocols(lines: tuple[Line, ...]) -> Iterator[Protocol]:
    """Rows are code 1002, their details 1006; blank lines part the rows."""
    row: list[str] = []
    detail: dict[str, str] = {}
    for line in lines:
        if line.code == 1002 and line.text.strip():
            if row:
                yield _protocol(row, detail)
            row, detail = line.text.split(None, 5), {}
        elif line.code == 1006 and ":" in line.text:
            name, _, value = line.text.strip().partition(":")
            # Channels repeat some names; the first one belongs to the protocol.
            detail.setdefault(name.strip(), value.strip())
    if row:
        yield _protocol(row, detail)


def _protocol(row: list[str], detail: dict[str, str]) -> Protocol:
    name, kind, table, state, since, info = [*row, *[""] * 6][:6]
    return Protocol(name, kind, table, state, since, info.strip(), detail)


def parse_routes(lines: Iterable[str]) -> Iterator[Route]:
    """Further paths to a network leave its column blank; next hops are lines below a path; the first one counts."""
    path: Route | None = None
    network = ""
    for text in lines:
        if found := _PATH.match(text):
            if path is not None:
                yield path
            network = found["net"] or network
            path = Route(network, found["kind"], found["protocol"], bool(found["chosen"]))
        elif path is not None and not path.interface and (hop := _HOP.match(text)):
            path = replace(path, gateway=hop["gateway"] or "", interface=hop["interface"])
    if path is not None:
        yield path
