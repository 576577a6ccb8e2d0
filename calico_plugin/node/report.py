"""The text of `calicoctl node status`: BIRD's own words in the original's tables, then what they mean. Pure."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Iterable, Iterator, Mapping, Sequence

from calico_plugin.routing.birdc import Protocol, Status
from calico_plugin.routing.sessions import PEER_TYPES

HEADINGS = ("PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO")
_INFO_WIDTH = 30
_NAME = re.compile(r"(Global|Node|Mesh)_(.+?)(?:_port_(\d+))?")
NO_PROCESS = "Calico process is not running."
PROCESS = "Calico process is running."
NO_BACKEND = "None of the BGP backend processes (BIRD) are running."
_HINTS = (
    ("Connection refused", "nothing listens there on the BGP port: is calico-node running on that host?"),
    ("No route to host", "the host does not answer: is it up, and on this network?"),
    ("Host is unreachable", "the host does not answer: is it up, and on this network?"),
    ("Network is unreachable", "this host has no route to it"),
    ("Connection timed out", "no answer at all: a firewall may drop TCP port 179 on the way"),
    ("Bad peer AS", "the two ends disagree about the AS number: compare `calicoctl get nodes -o wide` and the BGPPeer"),
    ("Bad BGP identifier", "both have the same router id: give each node its own address or CALICO_ROUTER_ID"),
    ("Connection collision", "the other end has a session with us already under another name"),
    ("Hold timer expired", "the other end fell silent: is its host up?"),
    ("Authentication", "the passwords of the two ends differ"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One BGP session as BIRD tells it. `peer` has `:port` when it is not the usual one, `name` is BIRD's."""

    peer: str
    address: str
    kind: str
    state: str
    since: str
    info: str
    established: bool
    passive: bool
    name: str = ""

    @property
    def version(self) -> int:
        return ip_address(self.address).version


def rows(protocols: Iterable[Protocol]) -> list[Row]:
    """Sessions of ours; other BGP protocols are somebody else's."""
    found = []
    for one in protocols:
        match = _NAME.fullmatch(one.name)
        if one.kind == "BGP" and match:
            found.append(_row(one, match))
    return found


def _row(one: Protocol, match: re.Match[str]) -> Row:
    kind, name, port = match.groups()
    address = one.detail.get("Neighbor address") or _address(name)
    address = address.partition("%")[0]
    info = " ".join(one.info.split()) or one.detail.get("BGP state", "")
    shown = f"[{address}]:{port}" if port and ":" in address else f"{address}:{port}" if port else address
    passive = info.startswith("Passive")
    return Row(shown, address, PEER_TYPES[kind], one.state, one.since, info, one.established, passive, one.name)


def _address(name: str) -> str:
    """`10_0_0_1` -> 10.0.0.1, `fd00__1` -> fd00::1: only when BIRD does not tell the neighbour itself."""
    parts = name.split("_")
    four = len(parts) == 4 and all(part.isdecimal() for part in parts)
    return ".".join(parts) if four else name.replace("_", ":")


def tables(found: Sequence[Row]) -> str:
    """Heading and table of each IP version, each with a blank line after it."""
    return "".join(f"IPv{version} BGP status\n{_body(found, version)}\n" for version in (4, 6))


def _body(found: Sequence[Row], version: int) -> str:
    cells = [(row.peer, row.kind, row.state, row.since, row.info) for row in found if row.version == version]
    return _table(cells) if cells else f"No IPv{version} peers found.\n"


def _table(cells: Sequence[tuple[str, ...]]) -> str:
    wrapped = [[*([part] for part in row[:-1]), textwrap.wrap(row[-1], _INFO_WIDTH) or [""]] for row in cells]
    # As the original: a wrapped column is as wide as its longest cell before wrapping, up to the limit.
    full = max((min(len(row[-1]), _INFO_WIDTH) for row in cells), default=0)
    widths = [
        max(len(heading), *(len(line) for row in wrapped for line in row[column]))
        for column, heading in enumerate(HEADINGS)
    ]
    widths[-1] = max(widths[-1], full)
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [rule, _line(_centred(heading, width) for heading, width in zip(HEADINGS, widths)), rule]
    for row in wrapped:
        for number in range(max(len(part) for part in row)):
            texts = (part[number] if number < len(part) else "" for part in row)
            lines.append(_line(text.ljust(width) for text, width in zip(texts, widths)))
    return "\n".join([*lines, rule]) + "\n"


def _centred(text: str, width: int) -> str:
    return (" " * ((width - len(text)) // 2) + text).ljust(width)


def _line(parts: Iterable[str]) -> str:
    return "| " + " | ".join(parts) + " |"


def hints(found: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    """One sentence for each session that is not up; `names` maps addresses to nodes, as far as known."""
    for row in found:
        if row.established:
            continue
        node = f" (node {names[row.address]})" if row.address in names else ""
        yield f"{row.peer}{node}: {_cause(row)}"


def _cause(row: Row) -> str:
    for words, text in _HINTS:
        if words in row.info:
            return text
    if row.passive:
        return "the other end has to connect to us: is calico-node running there, and may it reach our BGP port?"
    return "no connection yet; BIRD keeps trying"


def summary(status: Status, found: Sequence[Row]) -> str:
    """One line about BIRD itself."""
    up = sum(row.established for row in found)
    recovering = "; a graceful restart is in progress" if status.graceful_restart else ""
    return f"BIRD {status.version}, router id {status.router_id}: {up} of {len(found)} sessions established{recovering}"


def problems(told: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What the agent cannot make as configured (`observe.problems`), with a heading; nothing when all is well."""
    sentences = [sentence for part in sorted(told) for sentence in told[part]]
    if sentences:
        yield "Not in force as configured:"
        yield from (f"  {sentence}" for sentence in sentences)
