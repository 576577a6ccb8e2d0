"""The list of all checks, and how they are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, Sequence

import structlog

from calico_plugin.cli.doctor import (
    address_checks,
    cluster_checks,
    docker_checks,
    host_checks,
    name_checks,
    service_checks,
)
from calico_plugin.cli.doctor.context import Context
from calico_plugin.cli.doctor.finding import Finding, Level
from calico_plugin.errors import CalicoError
from calico_plugin.observe import log


@dataclass(frozen=True, slots=True)
class Check:
    """`name` is what `--only` takes; with `needs_etcd` it is left out while etcd cannot be read, a part while
    calico-node does not run, and with `needs_root` for who is not root and would see less than there is.
    """

    name: str
    run: Callable[[Context], Iterable[Finding]]
    needs_etcd: bool = False
    is_part: bool = False
    needs_root: bool = False


CHECKS: Sequence[Check] = (
    Check("rights", host_checks.rights),
    Check("settings", cluster_checks.settings),
    Check("connection", cluster_checks.connection),
    Check("etcd", cluster_checks.etcd),
    Check("clock", cluster_checks.clock),
    Check("lock", cluster_checks.datastore_lock, needs_etcd=True),
    Check("values", cluster_checks.values, needs_etcd=True),
    Check("node", host_checks.identity, needs_etcd=True),
    Check("calico-node", service_checks.calico_node),
    Check("driver", service_checks.driver, is_part=True, needs_root=True),
    Check("agent", service_checks.agent, is_part=True),
    Check("policy", service_checks.policy_table, is_part=True, needs_root=True),
    Check("bird", service_checks.bird, is_part=True, needs_root=True),
    Check("bgp", service_checks.sessions, is_part=True, needs_root=True),
    Check("nodes", cluster_checks.stale_nodes, needs_etcd=True),
    Check("forwarding", host_checks.forwarding),
    Check("rp_filter", host_checks.rp_filter),
    Check("firewall", host_checks.forward_policy, needs_root=True),
    Check("mtu", host_checks.mtu, needs_etcd=True),
    Check("manager", host_checks.network_manager),
    Check("room", host_checks.tables),
    Check("pools", address_checks.pools, needs_etcd=True),
    Check("pool routes", address_checks.pool_routes, needs_etcd=True),
    Check("addresses", address_checks.leaks, needs_etcd=True),
    Check("endpoints", address_checks.workloads, needs_etcd=True),
    Check("docker", docker_checks.docker, needs_root=True),
    Check("networks", docker_checks.networks, needs_root=True),
    Check("names", name_checks.names, is_part=True, needs_root=True),
)


def run(context: Context, checks: Iterable[Check] = CHECKS) -> Iterator[Finding]:
    """All findings, check by check. A check that fails itself is a finding too, and stops no other."""
    for check in checks:
        reason = _in_vain(check, context)
        if reason:
            yield Finding(check.name, Level.SKIP, reason)
            continue
        try:
            yield from list(check.run(context))
        except CalicoError as error:
            yield Finding(check.name, Level.WARN, f"cannot be looked at: {error}")
        except Exception as error:  # the edge: one broken check must not hide what the others find
            log.bug(structlog.get_logger(), "a check failed", check=check.name)
            summary = f"cannot be looked at: {type(error).__name__}: {error} (a bug of calicoctl doctor)"
            yield Finding(check.name, Level.WARN, summary)


def _in_vain(check: Check, context: Context) -> str:
    """Why a check cannot say anything now; nothing when it can."""
    if check.needs_root and not context.is_root:
        return "needs root"
    if check.is_part and context.nothing_runs:
        return "calico-node does not run"
    return "etcd cannot be read" if check.needs_etcd and context.etcd_fault else ""
