"""Checks of this host's kernel: forwarding, filters, MTU, disks."""

from __future__ import annotations

from typing import Iterable

from calico_plugin.cli.doctor import probes
from calico_plugin.cli.doctor.context import Context
from calico_plugin.cli.doctor.finding import Finding, Level
from calico_plugin.model.names import INTERFACE_PREFIX
from calico_plugin.model.resources import WorkloadEndpoint

VXLAN_BYTES, IPIP_BYTES = 50, 20
FULL = 0.05
"""Share of a disk, or of the connection table, that must be free."""
_VXLAN_LINK = "vxlan.calico"


def rights(context: Context) -> Iterable[Finding]:
    """Whether everything can be seen."""
    if context.is_root:
        yield Finding("rights", Level.OK, "root sees everything")
    else:
        meaning = "Firewall, policy, Docker and the sockets of calico-node's parts are not looked at."
        yield Finding("rights", Level.WARN, "you are not root", meaning, "sudo -E calicoctl doctor")


def forwarding(context: Context) -> Iterable[Finding]:
    """The kernel is a router, for each family that containers have."""
    wanted = {"net/ipv4/ip_forward": "IPv4"}
    if any(":" in network for endpoint in _endpoints(context) for network in endpoint.spec.ip_networks):
        wanted["net/ipv6/conf/all/forwarding"] = "IPv6"
    off = [name for name in wanted if probes.setting(name) == "0"]
    for name in off:
        dotted = name.replace("/", ".")
        meaning = "Containers reach nothing outside of their host, and nothing reaches them."
        command = f"sysctl -w {dotted}=1; echo {dotted}=1 > /etc/sysctl.d/90-calico.conf"
        yield Finding("forwarding", Level.FAIL, f"{wanted[name]} forwarding is off", meaning, command)
    if not off:
        yield Finding("forwarding", Level.OK, f"{' and '.join(wanted.values())} packets are forwarded")


def _endpoints(context: Context) -> list[WorkloadEndpoint]:
    return [] if context.etcd_fault else context.local_endpoints


def rp_filter(context: Context) -> Iterable[Finding]:
    """The kernel's own check of source addresses."""
    value = probes.setting("net/ipv4/conf/all/rp_filter")
    if value == "2":
        meaning = "The kernel does not see a container that lies about its address; only our own filter does."
        command = "sysctl -w net.ipv4.conf.all.rp_filter=0 (or 1), and the same in /etc/sysctl.d"
        yield Finding("rp_filter", Level.WARN, "net.ipv4.conf.all.rp_filter is 2 (loose)", meaning, command)
    else:
        yield Finding("rp_filter", Level.OK, f"net.ipv4.conf.all.rp_filter is {value}")


def forward_policy(context: Context) -> Iterable[Finding]:
    """Docker's FORWARD policy DROP, against which accept rules must stand."""
    gaps = probes.forward_gaps()
    for gap in gaps:
        meaning = "This filter drops packets of containers before policy sees them."
        command = (
            f"iptables -S FORWARD shows it; calico-agent puts its rules for {INTERFACE_PREFIX}* back: {context.start}"
        )
        yield Finding("firewall", Level.FAIL, f"no accept rules for containers in {gap}", meaning, command)
    if not gaps:
        yield Finding("firewall", Level.OK, "no iptables chain stands in the way of containers")


def mtu(context: Context) -> Iterable[Finding]:
    """Links of containers are not wider than what their packets must pass through."""
    node = None if context.etcd_fault else context.own_node
    address = node.spec.bgp.ipv4_address or node.spec.bgp.ipv6_address if node and node.spec.bgp else ""
    uplink = next((link for link in context.links if link.name and link.name == context.carrier(address)), None)
    if uplink is None:
        yield Finding("mtu", Level.SKIP, "this node's address is on no link")
        return
    room = uplink.mtu - _overhead(context)
    wide = [link for link in context.links if _of_container(link.name) and link.mtu > room]
    for link in wide[:3]:
        meaning = "Large packets to other hosts are lost or cut: connections hang as soon as much data flows."
        command = (
            f"ip link set {uplink.name} mtu {link.mtu + uplink.mtu - room} where the network can carry it; else "
            f"CALICO_LIBNETWORK_VETH_MTU={room} for calico-node, and start the containers again"
        )
        summary = f"{link.name} has MTU {link.mtu}, the way through {uplink.name} carries {room}"
        yield Finding("mtu", Level.FAIL, summary, meaning, command)
    if not wide:
        yield Finding("mtu", Level.OK, f"{uplink.name} carries packets of {room} bytes, and no link is wider")


def _of_container(name: str) -> bool:
    return name.startswith(INTERFACE_PREFIX) or name == _VXLAN_LINK


def _overhead(context: Context) -> int:
    """Bytes that the tunnels of the enabled pools add."""
    specs = [pool.spec for pool in context.pools if not pool.spec.disabled]
    if any(spec.vxlan_mode not in ("", "Never") for spec in specs):
        return VXLAN_BYTES
    return IPIP_BYTES if any(spec.ipip_mode not in ("", "Never") for spec in specs) else 0


def network_manager(context: Context) -> Iterable[Finding]:
    """NetworkManager leaves the links of containers alone."""
    ignores = probes.network_manager()
    if ignores is False:
        meaning = "It may take addresses and routes of containers away."
        command = (
            "printf '[keyfile]\\nunmanaged-devices=interface-name:cali*;interface-name:tunl*\\n'"
            " > /etc/NetworkManager/conf.d/calico.conf; systemctl reload NetworkManager"
        )
        summary = "NetworkManager runs and manages links of containers"
        yield Finding("manager", Level.WARN, summary, meaning, command)
    else:
        yield Finding("manager", Level.OK, "leaves cali* alone" if ignores else "NetworkManager does not run")


def tables(context: Context) -> Iterable[Finding]:
    """Disks of logs and state, and the table of connections, have room."""
    for folder in (context.settings.log_dir, context.settings.lib_dir, context.settings.run_dir):
        found = probes.disk(folder)
        if found and found.free < FULL:
            meaning = "Logs and state cannot be written; services may not start again."
            summary = f"the disk of {folder} is full to {100 * (1 - found.free):.0f} %"
            yield Finding("room", Level.WARN, summary, meaning, f"du -xsh {folder}/*")
    count, most = (probes.setting(f"net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    if count and most and int(count) > (1 - FULL) * int(most):
        meaning = "The kernel drops packets of new connections."
        command = f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}"
        yield Finding("room", Level.FAIL, f"{count} of {most} connections are in use", meaning, command)


def identity(context: Context) -> Iterable[Finding]:
    """This host is one node of the cluster, under one name and an address that it has."""
    from_file = context.kept_name
    if from_file and from_file != context.name:
        meaning = "The next start makes a second node of this host, and leaves the endpoints of the first one behind."
        command = f"unset NODENAME, or calicoctl delete node {from_file} afterwards"
        yield Finding("node", Level.WARN, f"the name is {context.name} now, and was {from_file}", meaning, command)
    if context.own_node is None:
        known = ", ".join(sorted(node.name for node in context.nodes)) or "none"
        meaning = "Other hosts do not know this one: there are no routes to its containers."
        summary = f"Node({context.name}) does not exist; nodes: {known}"
        yield Finding("node", Level.FAIL, summary, meaning, f"{context.start} (NODENAME, if it has another name)")
        return
    yield from _addresses(context)


def _addresses(context: Context) -> Iterable[Finding]:
    assert context.own_node is not None
    mine = context.bgp_addresses(context.own_node)
    lost = [address for address in mine if not context.carrier(address)]
    for address in lost:
        meaning = "Other hosts send packets for this host's containers to an address that it does not have."
        command = f"{context.start} with IP=autodetect, or give the address back to its link"
        yield Finding("node", Level.FAIL, f"address {address} is on no link of this host", meaning, command)
    others = [node for node in context.nodes if node.name != context.name]
    twins = [(node, address) for node in others for address in context.bgp_addresses(node) if address in mine]
    for twin, address in twins:
        meaning = "Packets for one of the two hosts go to the other."
        command = f"if that is this host under an old name: calicoctl delete node {twin.name}"
        yield Finding("node", Level.FAIL, f"node {twin.name} has the address {address} too", meaning, command)
    if not lost and not twins:
        yield Finding("node", Level.OK, f"{context.name}, {', '.join(mine) or 'without an address'}")
