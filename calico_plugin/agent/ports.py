"""What published ports need besides the rules: their links' setting, old connections out of the way, and the file that
says that they are in force.

Order: rules, then the setting, then the file, for which the driver's answer to Docker waits. The other way round when
they go. An UDP client that sends all the time keeps its connection alive, so one from before the port was published
would never meet the new rules: it is forgotten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Mapping

from calico_plugin.agent.endpoints import LocalEndpoint
from calico_plugin.agent.status_files import StatusFiles
from calico_plugin.dataplane import conntrack, links
from calico_plugin.dataplane.links import Link
from calico_plugin.dataplane.netlink import NETLINK_NETFILTER, Netlink
from calico_plugin.errors import DataplaneError
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.published import DIRECTORY, Published, content

_UDP = 17
InForce = Mapping[str, tuple[Published, ...]]


class PublishedPorts:
    """Owned by the loop's thread."""

    def __init__(self, run_dir: Path) -> None:
        self._netlink, self._netfilter = Netlink(), Netlink(protocol=NETLINK_NETFILTER)
        self._files = StatusFiles(run_dir, DIRECTORY)
        # Interface -> index of the link that has the setting; None: it is what an earlier agent has left.
        self._open: dict[str, int] | None = None
        self._written: dict[str, str] = {}
        self._in_force: InForce | None = None
        self._doors: frozenset[Published] = frozenset()

    def read(self) -> None:
        """What is written there, of an earlier agent too."""
        self._files.read()

    def apply(
        self,
        in_force: InForce,
        endpoints: Mapping[ResourceKey, LocalEndpoint],
        keys: Mapping[str, ResourceKey],
        known: Mapping[str, Link],
    ) -> list[str]:
        """Bring all of it in line with the rules: `in_force` are the ports, `keys` the endpoint of each interface,
        `known` its link. What could not be done, in words.
        """
        problems = self._set_links({name for name, ports in in_force.items() if _has_ipv4(ports)}, known)
        if in_force is not self._in_force:
            problems += self._forget(frozenset(one for ports in in_force.values() for one in ports))
        if problems:
            return problems
        if in_force is not self._in_force:
            files = {name: endpoints[keys[name]].status for name in in_force if keys.get(name) in endpoints}
            self._want(files, in_force)
            self._in_force = in_force
        errors = (*self._files.remove(), *self._files.write())
        return [f"file of published ports {error.name}: {error.why}" for error in errors]

    def _want(self, files: Mapping[str, str], in_force: InForce) -> None:
        """`files`: interface -> name of its file."""
        for name in self._written.keys() - files.keys():
            self._files.unwant(self._written[name])
        for name, file in files.items():
            self._files.want(file, content(in_force[name]))
        self._written = dict(files)

    def close(self) -> None:
        self._netlink.close()
        self._netfilter.close()

    def _set_links(self, wanted: set[str], known: Mapping[str, Link]) -> list[str]:
        """A link may carry 127.0.0.0/8, the host's end of a connection to a published port, only while it publishes."""
        before = self._open if self._open is not None else _left_open(known)
        if not wanted and not before:
            self._open = before
            return []
        opened = [known[name] for name in wanted if name in known and before.get(name) != known[name].index]
        closed = [known[name] for name in before.keys() - wanted if name in known]
        problems = links.route_loopback(self._netlink, closed, False)
        problems += links.route_loopback(self._netlink, opened, True)
        if not problems:
            self._open = {name: known[name].index for name in wanted if name in known}
        return problems

    def _forget(self, doors: frozenset[Published]) -> list[str]:
        fresh = [one for one in doors - self._doors if one.protocol == _UDP]
        try:
            for version in sorted({one.version for one in fresh}):
                ports = {one.host_port for one in fresh if one.version == version}
                conntrack.forget_ports(self._netfilter, version, _UDP, ports)
        except DataplaneError as error:
            return [str(error)]
        self._doors = doors
        return []


def _left_open(known: Mapping[str, Link]) -> dict[str, int]:
    return {name: link.index for name, link in known.items() if dict(link.ipv4).get("route_localnet")}


def _has_ipv4(ports: Iterable[Published]) -> bool:
    return any(one.version == 4 for one in ports)
