"""ClusterInformation, FelixConfiguration and the kinds that only pass through (datamodel 2.7, 5.4)."""

from __future__ import annotations

from typing import Any

from msgspec import field

from calico_plugin.model.resources.meta import Resource, Value


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
    """Each member of `spec` is one Felix parameter; they are read by name where they are used."""

    kind: str = "FelixConfiguration"
    spec: dict[str, Any] = {}


class KubeControllersConfiguration(Resource, frozen=True, kw_only=True):
    kind: str = "KubeControllersConfiguration"
    spec: dict[str, Any] = {}


class CalicoNodeStatusSpec(Value, frozen=True, kw_only=True):
    node: str = ""
    classes: tuple[str, ...] = ()
    update_period_seconds: int | None = None


class CalicoNodeStatus(Resource, frozen=True, kw_only=True):
    kind: str = "CalicoNodeStatus"
    spec: CalicoNodeStatusSpec = CalicoNodeStatusSpec()
    status: dict[str, Any] = {}
