"""Checks of calico-node's parts on this host: driver, agent, BIRD and its sessions."""

from __future__ import annotations

from typing import Iterable

from calico_plugin.cli.doctor import probes
from calico_plugin.cli.doctor.context import Context
from calico_plugin.cli.doctor.finding import Finding, Level
from calico_plugin.errors import RoutingError
from calico_plugin.model.names import NFT_TABLE

IN_SYNC = 3.0


def calico_node(context: Context) -> Iterable[Finding]:
    """The process that keeps the others running."""
    if context.node_pid is not None:
        where = f", process {context.node_pid}" if context.node_pid else ""
        yield Finding("calico-node", Level.OK, f"runs as a {context.form.value}{where}")
    elif context.node_runs:
        meaning = "Its parts go on, but one that dies is not looked after, and nothing notices a new address."
        yield Finding("calico-node", Level.FAIL, "was killed; its parts still run", meaning, context.start)
    else:
        meaning = "Running containers keep their connections; new ones cannot be started on Calico's networks."
        yield Finding("calico-node", Level.FAIL, "does not run on this host", meaning, context.start)


def driver(context: Context) -> Iterable[Finding]:
    """Docker's two plugin sockets."""
    if not context.settings.node.run_driver:
        yield Finding("driver", Level.SKIP, "CALICO_LIBNETWORK_ENABLED=false")
        return
    fault = context.driver_fault()
    if fault is None:
        yield Finding("driver", Level.OK, f"both sockets in {context.settings.plugin_dir} answer")
        return
    meaning = (
        'docker run fails on Calico\'s networks, after 15 s with `plugin "calico" not found` where there is no '
        'socket.'
    )
    command = f"{context.start}; why it died: {context.log_of('calico-driver')}"
    yield Finding("driver", Level.FAIL, f"does not answer: {fault}", meaning, command)


def agent(context: Context) -> Iterable[Finding]:
    """The agent is alive, in sync with etcd, and has applied everything."""
    if not context.settings.node.run_agent:
        yield Finding("agent", Level.SKIP, "CALICO_DISABLE_FELIX is set")
        return
    if not context.agent_alive:
        meaning = (
            "Running containers keep their routes and policy; new ones fail, and changes of policy do nothing here."
        )
        command = f"{context.start}; why it died: {context.log_of('calico-agent')}"
        yield Finding("agent", Level.FAIL, "calico-agent does not run", meaning, command)
        return
    yield from _readiness(context)
    yield from _sync(context)


def _readiness(context: Context) -> Iterable[Finding]:
    settings = context.settings
    if not settings.health_enabled:
        yield Finding("agent", Level.OK, "runs (FELIX_HEALTHENABLED is false, so it cannot be asked how it is)")
        return
    status, text = probes.page(settings.health_host, settings.health_port, "/readiness")
    if status in (200, 204):
        yield Finding("agent", Level.OK, "runs, in sync and ready")
        return
    bad = [line for line in text.splitlines()[1:] if "non-" in line or "timed out" in line]
    summary = "; ".join(" ".join(line.split()) for line in bad) or text.strip() or f"status {status}"
    meaning = "Policy and routes of new containers are not in place, so that they are not started."
    yield Finding("agent", Level.FAIL, f"not ready: {summary}", meaning, context.log_of("calico-agent"))


def _sync(context: Context) -> Iterable[Finding]:
    metrics = context.metrics
    if metrics.get("felix_resync_state", IN_SYNC) != IN_SYNC:
        meaning = "It works on what it knew before: changes of policy and containers of other hosts are not seen."
        yield Finding("agent", Level.FAIL, "has lost etcd and is not in sync", meaning, "see the finding about etcd")
    if metrics.get("calico_encapsulation_problems", 0.0) > 0:
        meaning = "Packets to other hosts are not put into a tunnel as a pool wants it."
        command = "`calicoctl get ippool -o wide`; IPIP needs the kernel module ipip, VXLAN the module vxlan"
        yield Finding("agent", Level.FAIL, "a pool's encapsulation cannot work here", meaning, command)


def policy_table(context: Context) -> Iterable[Finding]:
    """The packet filter that holds all policy."""
    there = probes.nft_table(NFT_TABLE)
    if there is None:
        yield Finding("policy", Level.SKIP, "nft cannot be asked")
    elif there:
        yield Finding("policy", Level.OK, f"nftables has table inet {NFT_TABLE}")
    else:
        meaning = "No policy is in force on this host."
        yield Finding("policy", Level.FAIL, f"nftables has no table inet {NFT_TABLE}", meaning, context.start)


def bird(context: Context) -> Iterable[Finding]:
    """BIRD answers and runs on what the cluster says now."""
    if context.settings.node.backend != "bird":
        yield Finding("bird", Level.SKIP, f"the backend is {context.settings.node.backend}")
        return
    try:
        status = context.bird_status
    except RoutingError as error:
        meaning = (
            "Routes of other hosts stay for now, but no change is learned, and others forget this host's after "
            "minutes."
        )
        command = f"{context.start}; why it died: {context.log_of('bird')}"
        yield Finding("bird", Level.FAIL, str(error), meaning, command)
        return
    refused = context.metrics.get("calico_bird_config_refused", 0.0) > 0
    left_out = [name.partition('"')[2].rpartition('"')[0] for name in _left_out(context)]
    if refused:
        meaning = "BIRD goes on with the last good configuration; changes of peers have no effect."
        command = f"calicoctl node status, and {context.log_of('calico-agent')} name the object"
        yield Finding("bird", Level.FAIL, "BIRD refuses what the cluster says", meaning, command)
    for what in left_out:
        meaning, command = "It is ignored, so that the others work.", "calicoctl validate -f the manifest it is from"
        yield Finding("bird", Level.WARN, f"{what} cannot be used", meaning, command)
    if not refused and not left_out:
        yield Finding("bird", Level.OK, f"version {status.version}, router id {status.router_id}")


def _left_out(context: Context) -> list[str]:
    return [name for name, value in context.metrics.items() if name.startswith("calico_bird_left_out{") and value > 0]


def sessions(context: Context) -> Iterable[Finding]:
    """Each BGP session is established."""
    if context.settings.node.backend != "bird":
        return
    try:
        rows = context.sessions
    except RoutingError:
        yield Finding("bgp", Level.SKIP, "BIRD cannot be asked")
        return
    for row in rows:
        if row.established:
            continue
        meaning = "Containers of the hosts behind that session cannot be reached from here, or lose packets soon."
        command = "calicoctl doctor on that host; " + _advice(row.info)
        summary = f"{row.kind} session with {context.down(row)}"
        yield Finding("bgp", Level.FAIL, summary, meaning, command)
    if all(row.established for row in rows):
        yield from _enough(context, len(rows))


def _advice(info: str) -> str:
    if "Bad peer AS" in info:
        return "compare `calicoctl get nodes -o wide` with `calicoctl get bgppeers`"
    if "identifier" in info:
        return "give each node its own address: calicoctl node run --ip=ADDRESS"
    return "nft list ruleset | grep 179 shows what drops BGP"


def _enough(context: Context, number: int) -> Iterable[Finding]:
    """No session is down; but are there any, where there are other nodes?"""
    others = [] if context.etcd_fault else [one for one in context.nodes if one.name != context.name]
    reachable = [node for node in others if context.bgp_addresses(node)]
    if number or not reachable or not context.mesh_enabled():
        yield Finding("bgp", Level.OK, f"{number} sessions, all established")
        return
    meaning = "Containers here and on other hosts cannot reach each other."
    command = "calicoctl node status; calicoctl get bgppeers; calicoctl get nodes -o wide"
    summary = f"no BGP session, although there are {len(reachable)} other nodes"
    yield Finding("bgp", Level.FAIL, summary, meaning, command)
