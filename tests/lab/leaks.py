"""What should exist for the containers that Docker runs, what does exist, and the difference.

Looks at Docker, the kernel and etcd's keys with tools of their own (docker, ip, nft, etcdctl), not with our code: the
code under test must not be the judge of itself.
"""
from __future__ import annotations

import json
import re
from dataclasses import dataclass
from ipaddress import ip_address

from tests.lab.lab import Lab

DRIVER = "calico"
ENDPOINTS = "/calico/resources/v3/projectcalico.org/workloadendpoints/"
BLOCKS = "/calico/ipam/v2/assignment/"
HANDLES = "/calico/ipam/v2/handle/"
STATUS = "/var/run/calico/endpoint-status"
LINK = re.compile(r"\bcali[0-9a-f]{11}\b")


@dataclass(frozen=True)
class Attachment:
    """A running container's end in a Calico network, as Docker tells it."""

    host: str
    endpoint: str
    address: str

    @property
    def link(self) -> str:
        """The host's end of its veth."""
        return f"cali{self.endpoint[:11]}"


def attachments(lab: Lab, host: str) -> list[Attachment]:
    """What Docker on a host says of its running containers."""
    machine = lab[host]
    networks = set(machine.run("docker", "network", "ls", "-q", "--no-trunc", "-f", f"driver={DRIVER}").stdout.split())
    running = machine.run("docker", "ps", "-q").stdout.split()
    if not running:
        return []
    template = "{{json .NetworkSettings.Networks}}"
    lines = machine.run("docker", "inspect", "-f", template, *running).stdout.splitlines()
    ends = [end for line in lines for end in json.loads(line).values()]
    return [Attachment(host, end["EndpointID"], end["IPAddress"])
            for end in ends if end["NetworkID"] in networks and end["EndpointID"]]


def container_addresses(lab: Lab) -> set[str]:
    """Addresses that IPAM holds for containers: allocated, and without a handle that says they are something else."""
    found = set()
    for value in lab.etcd.values(BLOCKS).values():
        block = json.loads(value)
        first = block["cidr"].partition("/")[0]
        for ordinal, index in enumerate(block["allocations"]):
            if index is not None and not block["attributes"][index].get("handle_id"):
                found.add(str(ip_address(first) + ordinal))
    return found


def handles(lab: Lab) -> set[str]:
    """Addresses of networks: IPAM's handles that say that they are a Docker network's gateway or auxiliary address."""
    names = {key.rpartition("/")[2] for key in lab.etcd.keys(HANDLES)}
    return {name for name in names if name.startswith("docker-")}


def differences(lab: Lab) -> list[str]:
    """One line for each thing that is left over or missing; empty when all is as it should be."""
    wanted = [one for host in lab.hosts for one in attachments(lab, host)]
    found = []
    for host in lab.hosts:
        found += _on_host(lab, host, [one for one in wanted if one.host == host])
    stored = {key.rpartition("-")[2]: key for key in lab.etcd.keys(ENDPOINTS)}
    found += _compare("etcd: endpoint", {one.endpoint for one in wanted}, set(stored))
    found += _compare("etcd: address", {one.address for one in wanted}, container_addresses(lab))
    return found


def _on_host(lab: Lab, host: str, wanted: list[Attachment]) -> list[str]:
    machine = lab[host]
    links = {one.link for one in wanted}
    have = {entry["ifname"] for entry in json.loads(machine.run("ip", "-j", "link").stdout)}
    found = _compare(f"{host}: link", links, {name for name in have if name.startswith(("cali", "tmp"))})
    routes = json.loads(machine.run("ip", "-j", "-4", "route").stdout)
    on_links = {(route["dev"], route["dst"]) for route in routes if route.get("dev", "").startswith("cali")}
    found += _compare(f"{host}: route", {(one.link, one.address) for one in wanted}, on_links)
    rules = machine.run("nft", "list", "table", "inet", "calico", check=False).stdout
    found += _compare(f"{host}: nft objects of", links, set(LINK.findall(rules)))
    files = machine.shell(f"ls {STATUS} 2>/dev/null || true").splitlines()
    found += _compare(f"{host}: endpoint-status file of", {one.endpoint for one in wanted},
                      {name.rpartition(" ")[2] for name in files})
    return found


def _compare(what: str, wanted: set, have: set) -> list[str]:
    return [f"{what} {one}: left over" for one in sorted(have - wanted)] + \
           [f"{what} {one}: missing" for one in sorted(wanted - have)]


def none(lab: Lab) -> bool:
    """For ``wait_for``: True, or an AssertionError that lists the differences."""
    found = differences(lab)
    assert not found, "; ".join(found)
    return True
