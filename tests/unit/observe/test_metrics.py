"""The metrics page: Felix's names with Felix's types."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.quantiles import Quantiles

COUNTERS = {
    "felix_resyncs_started", "felix_calc_graph_updates_processed", "felix_int_dataplane_failures", "felix_nft_calls",
    "felix_nft_errors",
}
GAUGES = {
    "felix_active_local_endpoints", "felix_cluster_num_hosts", "felix_resync_state", "felix_host", "felix_nft_chains",
    "felix_route_table_num_routes", "felix_int_dataplane_initial_resync_time_seconds",
}
SUMMARIES = {
    "felix_calc_graph_update_time_seconds", "felix_int_dataplane_apply_time_seconds",
    "felix_int_dataplane_msg_batch_size", "felix_int_dataplane_iface_msg_batch_size",
    "felix_route_table_conntrack_wait_seconds",
}


def test_types_are_felixs() -> None:
    """As Prometheus reads them, by the names that Felix has: no counter is called `_total`."""
    page = Metrics("h1").page().decode()
    types = {family.name: family.type for family in text_string_to_metric_families(page)}
    for names, kind in ((COUNTERS, "counter"), (GAUGES, "gauge"), (SUMMARIES, "summary")):
        assert {name: types.get(name) for name in names} == dict.fromkeys(names, kind)
    assert not [line for line in page.splitlines() if line.startswith(("felix_", "calico_")) and "_total" in line]


def test_counter_is_served_under_its_own_name() -> None:
    metrics = Metrics("h1")
    metrics.resyncs_started.inc()
    metrics.update_of("GlobalNetworkPolicy").inc(2)
    metrics.update_of("NetworkPolicy").inc()
    metrics.update_of("BGPPeer").inc()
    page = metrics.page().decode()
    assert "\nfelix_resyncs_started 1.0\n" in page
    assert 'felix_calc_graph_updates_processed{type="PolicyKey"} 3.0' in page
    assert 'felix_calc_graph_updates_processed{type="ResourceKey"} 1.0' in page


def test_summary_has_the_quantiles_of_the_last_ten_minutes() -> None:
    """0.5, 0.9 and 0.99; what is older only counts in sum and count."""
    now = [0.0]
    summary = Quantiles("s", "what", registry=None)
    summary._clock = lambda: now[0]  # type: ignore[method-assign]
    quantiles = ("0.5", "0.9", "0.99")

    def seen() -> dict[str, float]:
        samples = summary.collect()[0].samples
        return {str(one.labels.get("quantile") or one.name): one.value for one in samples}

    assert all(math.isnan(seen()[quantile]) for quantile in quantiles)
    for value in range(1, 101):
        summary.observe(value)
    assert [seen()[quantile] for quantile in quantiles] == [51, 91, 100]
    now[0] = 500
    summary.observe(7)
    now[0] = 700
    assert [seen()[quantile] for quantile in quantiles] == [7, 7, 7]
    assert (seen()["s_count"], seen()["s_sum"]) == (101, 5057)
