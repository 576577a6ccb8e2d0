"""ClusterInformation, FelixConfiguration and the kinds that only pass through (datamodel 2.7, 5.4)."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import field

from calico_plugin.model.resources.meta import Duration, Form, Resource, Value

Switch = Annotated[str, Form("text", ("Enabled", "Disabled"))]
PortNumber = Annotated[int, Form("integer", low=0, high=65535)]
NodeStatusClass = Annotated[str, Form("text", ("Agent", "BGP", "Routes"))]
UpdatePeriod = Annotated[int, Form("integer", low=0, high=86400)]


class ClusterInformationSpec(Value, frozen=True, kw_only=True):
    cluster_guid: str = field(name="clusterGUID", default="")
    cluster_type: str = ""
    calico_version: str = ""
    datastore_ready: bool | None = None
    variant: str = ""


class ClusterInformation(Resource, frozen=True, kw_only=True):
    kind: str = "ClusterInformation"
    spec: ClusterInformationSpec = ClusterInformationSpec()


class FelixConfiguration(Resource, frozen=True, kw_only=True):
    """Each member of `spec` is one Felix parameter (`felix.FIELDS`); they are read by name where they are used."""

    kind: str = "FelixConfiguration"
    spec: dict[str, Any] = {}


class AutoHostEndpoint(Value, frozen=True, kw_only=True):
    auto_create: Switch = ""
    create_default_host_endpoint: Switch = ""
    templates: tuple[dict[str, Any], ...] = ()


class NodeController(Value, frozen=True, kw_only=True):
    reconciler_period: Duration | None = None
    sync_labels: Switch = ""
    host_endpoint: AutoHostEndpoint | None = None
    leak_grace_period: Duration | None = None


class PeriodicController(Value, frozen=True, kw_only=True):
    reconciler_period: Duration | None = None


class LoadBalancerController(Value, frozen=True, kw_only=True):
    assign_ips: Annotated[str, Form("text", ("AllServices", "RequestedServicesOnly"))] = field(
        name="assignIPs", default=""
    )


class MigrationController(Value, frozen=True, kw_only=True):
    enabled: Switch = ""


class Controllers(Value, frozen=True, kw_only=True):
    node: NodeController | None = None
    policy: PeriodicController | None = None
    workload_endpoint: PeriodicController | None = None
    service_account: PeriodicController | None = None
    namespace: PeriodicController | None = None
    load_balancer: LoadBalancerController | None = None
    policy_migration: MigrationController | None = None


class KubeControllersConfigurationSpec(Value, frozen=True, kw_only=True):
    """Kept for the original tools; nothing on Docker hosts reads it."""

    log_severity_screen: str = ""
    health_checks: Switch = ""
    etcd_v3_compaction_period: Duration | None = field(name="etcdV3CompactionPeriod", default=None)
    prometheus_metrics_port: PortNumber | None = None
    controllers: Controllers = field(default_factory=Controllers)
    debug_profile_port: PortNumber | None = None


class KubeControllersConfiguration(Resource, frozen=True, kw_only=True):
    kind: str = "KubeControllersConfiguration"
    spec: KubeControllersConfigurationSpec = KubeControllersConfigurationSpec()
    status: dict[str, Any] = {}


class CalicoNodeStatusSpec(Value, frozen=True, kw_only=True):
    node: str = ""
    classes: tuple[NodeStatusClass, ...] = ()
    update_period_seconds: UpdatePeriod | None = None


class CalicoNodeStatus(Resource, frozen=True, kw_only=True):
    kind: str = "CalicoNodeStatus"
    spec: CalicoNodeStatusSpec = CalicoNodeStatusSpec()
    status: dict[str, Any] = {}
