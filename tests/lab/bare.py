"""What a host looks like without us, and in what it differs after us: links, routes, firewall, processes, files."""
from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields

from tests.lab.machine import Machine

# Folders in which everything that we make would lie. Logs may stay: that is what logs are for.
FOLDERS = "/run/docker/plugins /var/run/calico /var/lib/calico /etc/calico /run/service"
COUNTERS = re.compile(r"counter packets \d+ bytes \d+|\[\d+:\d+\]")


@dataclass(frozen=True)
class HostState:
    """All that could be left behind, as sets of comparable lines."""

    links: frozenset[str]
    routes: frozenset[str]
    rules: frozenset[str]
    firewall: frozenset[str]
    processes: frozenset[str]
    files: frozenset[str]


def look(machine: Machine) -> HostState:
    """Read the state of a host."""
    def lines(script: str) -> frozenset[str]:
        text = COUNTERS.sub("", machine.shell(script + " 2>/dev/null || true"))
        return frozenset(line.strip() for line in text.splitlines() if line.strip())

    return HostState(
        links=frozenset(entry["ifname"] for entry in json.loads(machine.run("ip", "-j", "link").stdout)),
        # Those of proto kernel come and go with links and addresses, by themselves.
        routes=lines("{ ip route show table all; ip -6 route show table all; } | grep -v 'proto kernel'"),
        rules=lines("ip rule; ip -6 rule"),
        firewall=lines("iptables-save | grep -v '^#'; nft list tables; nft list table inet calico"),
        processes=frozenset(one.text for one in machine.processes() if not one.argv[0].startswith("nsenter")),
        files=lines(f"find {FOLDERS} -mindepth 1"),
    )


def links(machine: Machine) -> set[str]:
    """Links of containers."""
    return {name for name in look_links(machine) if name.startswith(("cali", "tmp"))}


def look_links(machine: Machine) -> set[str]:
    """Names of all links."""
    return {entry["ifname"] for entry in json.loads(machine.run("ip", "-j", "link").stdout)}


def differences(before: HostState, after: HostState) -> list[str]:
    """One line for each thing that came or went."""
    found = []
    for one in fields(HostState):
        then, now = getattr(before, one.name), getattr(after, one.name)
        found += [f"{one.name}: {line!r} was left" for line in sorted(now - then)]
        found += [f"{one.name}: {line!r} has gone" for line in sorted(then - now)]
    return found
