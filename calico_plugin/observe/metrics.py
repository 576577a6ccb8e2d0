"""All metrics of the agent in one list, with Felix's names where the original has the thing (node-and-cli 5.2).

What is ours alone begins with `calico_`. The Python client would append `_total` to the names of counters; dashboards
made for Felix know them without it. So counters are gauges that only grow, and `page` says that they are counters.
"""

from __future__ import annotations

import re

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from calico_plugin.observe.quantiles import Quantiles

RESYNC_WAITING, RESYNC_RUNNING, RESYNC_IN_SYNC = 1, 2, 3


class Metrics:
    """One set for a process; the parts are told which of them to count in."""

    def __init__(self, node: str) -> None:
        disable_created_metrics()
        self.registry = registry = CollectorRegistry()
        self._counters: set[str] = set()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(name, what, labels, registry=registry)

        def counter(name: str, what: str, *labels: str) -> Gauge:
            self._counters.add(name)
            return gauge(name, what, *labels)

        def summary(name: str, what: str) -> Quantiles:
            return Quantiles(name, what, registry=registry)

        self.host = gauge("felix_host", "1; joins the host's name to other series", "host")
        self.host.labels(node).set(1)
        self.local_endpoints = gauge("felix_active_local_endpoints", "Workload endpoints on this host")
        self.cluster_hosts = gauge("felix_cluster_num_hosts", "Nodes in the cluster")
        self.cluster_workloads = gauge("felix_cluster_num_workload_endpoints", "Workload endpoints in the cluster")
        self.cluster_host_endpoints = gauge("felix_cluster_num_host_endpoints", "Host endpoints in the cluster")
        self.cluster_policies = gauge("felix_cluster_num_policies", "Policies in the cluster")
        self.cluster_profiles = gauge("felix_cluster_num_profiles", "Profiles in the cluster")
        self.cluster_tiers = gauge("felix_cluster_num_tiers", "Tiers in the cluster")
        self.resync_state = gauge("felix_resync_state", "1 waiting for the datastore, 2 resyncing, 3 in sync")
        self.resync_state.set(RESYNC_WAITING)
        self.resyncs_started = counter("felix_resyncs_started", "Full listings of the datastore")
        self.updates = counter("felix_calc_graph_updates_processed", "Datastore updates that were consumed", "type")
        self.update_seconds = summary("felix_calc_graph_update_time_seconds", "Time to take in a batch of updates")
        self.apply_seconds = summary("felix_int_dataplane_apply_time_seconds", "Time of a pass over the dataplane")
        self.apply_failures = counter("felix_int_dataplane_failures", "Passes that failed in part and will be retried")
        self.batch_size = summary("felix_int_dataplane_msg_batch_size", "Messages in a pass")
        self.interface_batch_size = summary("felix_int_dataplane_iface_msg_batch_size", "Link events in a pass")
        self.initial_resync_seconds = gauge(
            "felix_int_dataplane_initial_resync_time_seconds", "From start to the end of the first complete pass"
        )
        self.routes = gauge("felix_route_table_num_routes", "Routes of ours", "table")
        self.interfaces = gauge("felix_route_table_num_ifaces", "Links of ours", "table")
        self.nft_calls = counter("felix_nft_calls", "Transactions given to nftables")
        self.nft_errors = counter("felix_nft_errors", "Transactions that nftables refused")
        self.nft_chains = gauge("felix_nft_chains", "Chains in our table")
        self.nft_rules = gauge("felix_nft_rules", "Rules in our table")
        self.nft_sets = gauge("felix_nft_sets", "Sets in our table")
        self.conntrack_seconds = summary(
            "felix_route_table_conntrack_wait_seconds", "Time to forget the connections of released addresses"
        )
        self.connections_cut = counter("calico_connections_cut", "Connections that a change of policy forbade")
        self.policy_not_understood = gauge(
            "calico_policy_not_understood", "Resources that the policy engine does not understand; they fail closed"
        )
        self.policy_problems = gauge("calico_policy_problem", "1 for each resource that is not understood", "resource")
        self.bird_renders = counter("calico_bird_renders", "Configurations of BIRD that were rendered")
        self.bird_failures = counter("calico_bird_failures", "Configurations that BIRD refused or none could make")
        self.bird_problems = gauge("calico_bird_problems", "Resources left out of BIRD's configuration")
        self.bird_loaded = gauge("calico_bird_last_load_timestamp_seconds", "When BIRD last took a configuration")
        self.bird_left_out = gauge("calico_bird_left_out", "1 for each thing left out of BIRD's configuration", "what")
        self.bird_refused = gauge("calico_bird_config_refused", "1 while BIRD refuses what the cluster says")
        self.bgp_peers = gauge("calico_bgp_peers", "BGP sessions by state", "state")
        self.bgp_peer_up = gauge("calico_bgp_peer_up", "1 for an established session", "peer", "type")
        self.bird_routes = gauge("calico_bird_routes", "Routes of BIRD's protocols", "protocol", "direction")
        self.tunnel_routes = gauge("calico_tunnel_routes", "Routes of encapsulated pools that this host should have")
        self.tunnel_problems = gauge("calico_encapsulation_problems", "Encapsulation that cannot work as configured")
        self.invalid = gauge("calico_datastore_invalid_values", "Stored values that do not parse and count as absent")
        self.labels_awaited = gauge("calico_labels_awaited", "Endpoints that wait for Docker to tell their labels")
        self.names_known = gauge("calico_names_endpoints", "Endpoints of the cluster whose names are known")
        self.names_answered = counter("calico_names_answered", "DNS queries for names of containers that were answered")
        self.names_passed = counter("calico_names_passed", "DNS queries that looked like one and were passed on")
        self.docker_connected = gauge("calico_docker_connected", "1 while Docker's event stream is open")
        self.forward_repairs = counter("calico_forward_repairs", "Accept rules that had to be put back into iptables")
        self.swept = counter("calico_swept", "Leftovers that were removed", "kind")

    def page(self) -> bytes:
        """In Prometheus's text form."""
        return _TYPE.sub(self._type_line, generate_latest(self.registry))

    def update_of(self, kind: str) -> Gauge:
        """Counts an update of a resource, by Felix's word for it."""
        return self.updates.labels(_UPDATES.get(kind, "ResourceKey"))

    def _type_line(self, found: re.Match[bytes]) -> bytes:
        return b"# TYPE %s counter" % found[1] if found[1].decode() in self._counters else found[0]


_TYPE = re.compile(rb"^# TYPE (\S+) gauge$", re.MULTILINE)
_UPDATES = {
    "WorkloadEndpoint": "WorkloadEndpointKey", "HostEndpoint": "HostEndpointKey", "GlobalNetworkPolicy": "PolicyKey",
    "NetworkPolicy": "PolicyKey", "Profile": "ProfileRulesKey", "Tier": "TierKey", "IPPool": "IPPoolKey",
    "GlobalNetworkSet": "NetworkSetKey", "NetworkSet": "NetworkSetKey", "FelixConfiguration": "GlobalConfigKey",
}
