"""IPPool, IPReservation and IPAMConfiguration (datamodel 2.5, 2.6, 4.2)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType, field

from calico_plugin.model.resources.meta import Form, Resource, Value

EncapsulationMode = Annotated[str, Form("text", ("Never", "Always", "CrossSubnet"))]
AllowedUse = Annotated[str, Form("text", ("Workload", "Tunnel", "LoadBalancer"))]
AssignmentMode = Annotated[str, Form("text", ("Automatic", "Manual"))]
Switch = Annotated[str, Form("text", ("Enabled", "Disabled"))]

DEFAULT_BLOCK_SIZE = {4: 26, 6: 122}


class IPPoolSpec(Value, frozen=True, kw_only=True):
    """Old objects may lack every member but `cidr`: use the properties, which apply the defaults."""

    cidr: str = ""
    vxlan_mode: EncapsulationMode = ""
    ipip_mode: EncapsulationMode = ""
    nat_outgoing: bool = False
    disabled: bool = False
    disable_bgp_export: bool = field(name="disableBGPExport", default=False)
    block_size: int = 0
    node_selector: str = ""
    namespace_selector: str = ""
    allowed_uses: tuple[AllowedUse, ...] = ()
    assignment_mode: AssignmentMode | None = None

    @property
    def version(self) -> int:
        return 6 if ":" in self.cidr else 4

    @property
    def effective_block_size(self) -> int:
        return self.block_size or DEFAULT_BLOCK_SIZE[self.version]

    @property
    def effective_uses(self) -> tuple[str, ...]:
        return self.allowed_uses or ("Workload", "Tunnel")

    @property
    def automatic(self) -> bool:
        return self.assignment_mode in (None, "", "Automatic")

    @property
    def encapsulated(self) -> bool:
        return self.ipip_mode not in ("", "Never") or self.vxlan_mode not in ("", "Never")


class IPPool(Resource, frozen=True, kw_only=True):
    kind: str = "IPPool"
    spec: IPPoolSpec = IPPoolSpec()
    status: dict[str, Any] | UnsetType = UNSET


class IPReservationSpec(Value, frozen=True, kw_only=True):
    reserved_cidrs: tuple[str, ...] = msgspec.field(name="reservedCIDRs", default=())


class IPReservation(Resource, frozen=True, kw_only=True):
    kind: str = "IPReservation"
    spec: IPReservationSpec = IPReservationSpec()


class IPAMConfigurationSpec(Value, frozen=True, kw_only=True):
    """The two switches are always written, false too: msgspec never leaves out what a factory makes."""

    strict_affinity: bool = field(default_factory=bool)
    auto_allocate_blocks: bool = field(default_factory=bool)
    max_blocks_per_host: int = 0
    kube_virt_vm_address_persistence: Switch | None = msgspec.field(name="kubeVirtVMAddressPersistence", default=None)


class IPAMConfiguration(Resource, frozen=True, kw_only=True):
    """The v3 resource; the allocator reads `model.ipam.IPAMConfig` instead (datamodel 4.2)."""

    kind: str = "IPAMConfiguration"
    spec: IPAMConfigurationSpec = IPAMConfigurationSpec()
