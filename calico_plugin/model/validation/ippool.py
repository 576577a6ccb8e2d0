"""IPPool, IPReservation and IPAMConfiguration (datamodel 2.5, 2.6)."""

from __future__ import annotations

from ipaddress import ip_network

from calico_plugin.model.problem import Problem
from calico_plugin.model.resources.ipam import IPAMConfiguration, IPPool, IPPoolSpec, IPReservation
from calico_plugin.model.validation import text
from calico_plugin.model.validation.text import Network, Problems, SelectorParser

BLOCK_SIZES = {4: (20, 32), 6: (116, 128)}
_LINK_LOCAL = {4: ip_network("169.254.0.0/16"), 6: ip_network("fe80::/10")}
_NEVER = ("", "Never")


def pool(resource: IPPool, parse: SelectorParser) -> Problems:
    spec = resource.spec
    fault = (
        text.cidr_fault(spec.cidr) if spec.cidr else "must be given: the addresses of the pool, such as 10.50.0.0/16"
    )
    if fault:
        yield Problem("spec.cidr", spec.cidr or None, fault)
    network = text.network_or_none(spec.cidr)
    if network:
        yield from _cidr(spec, network)
    yield from _uses(spec)
    if spec.assignment_mode == "":
        yield Problem("spec.assignmentMode", "", "must be Automatic or Manual; leave it out for Automatic")
    yield from text.selector_problems("spec.nodeSelector", spec.node_selector, parse)
    yield from text.selector_problems("spec.namespaceSelector", spec.namespace_selector, parse)


def _cidr(spec: IPPoolSpec, network: Network) -> Problems:
    link_local = _LINK_LOCAL[network.version]
    if network.overlaps(link_local):
        yield Problem("spec.cidr", spec.cidr, f"overlaps the link-local range {link_local}")
    low, high = BLOCK_SIZES[network.version]
    if spec.block_size and not low <= spec.block_size <= high:
        yield Problem("spec.blockSize", spec.block_size, f"must be {low} to {high} for an IPv{network.version} pool")
    elif not spec.disabled and network.prefixlen > spec.effective_block_size:
        size = spec.effective_block_size
        hint = f"the pool is smaller than one block of /{size}; set spec.blockSize to {network.prefixlen} or more"
        yield Problem("spec.blockSize" if spec.block_size else "spec.cidr", spec.block_size or spec.cidr, hint)
    if network.version == 6 and spec.ipip_mode not in _NEVER:
        yield Problem("spec.ipipMode", spec.ipip_mode, "IPIP carries IPv4 only; use vxlanMode for an IPv6 pool")


def _uses(spec: IPPoolSpec) -> Problems:
    if spec.ipip_mode not in _NEVER and spec.vxlan_mode not in _NEVER:
        yield Problem(
            "spec.ipipMode",
            spec.ipip_mode,
            f"cannot be used together with vxlanMode {spec.vxlan_mode}; set one of them to Never",
        )
    if spec.namespace_selector and "Tunnel" in spec.effective_uses:
        yield Problem(
            "spec.namespaceSelector", spec.namespace_selector, "cannot be used with Tunnel; set allowedUses: [Workload]"
        )
    if "" in spec.allowed_uses:
        yield Problem("spec.allowedUses", "", "must be Workload, Tunnel or LoadBalancer")
    if "LoadBalancer" not in spec.allowed_uses:
        return
    if set(spec.allowed_uses) != {"LoadBalancer"}:
        yield Problem("spec.allowedUses", list(spec.allowed_uses), "LoadBalancer must stand alone")
    if spec.encapsulated:
        yield Problem(
            "spec.ipipMode" if spec.ipip_mode not in _NEVER else "spec.vxlanMode",
            None,
            "must be Never for a LoadBalancer pool",
        )
    if spec.node_selector not in ("", "all()"):
        yield Problem("spec.nodeSelector", spec.node_selector, "must be all() for a LoadBalancer pool")
    if spec.disable_bgp_export:
        yield Problem("spec.disableBGPExport", True, "must not be set for a LoadBalancer pool")


def reservation(resource: IPReservation, parse: SelectorParser) -> Problems:
    for index, cidr in enumerate(resource.spec.reserved_cidrs):
        fault = text.cidr_fault(cidr, strict=False)
        if fault:
            yield Problem(f"spec.reservedCIDRs[{index}]", cidr, fault)


def configuration(resource: IPAMConfiguration, parse: SelectorParser) -> Problems:
    if resource.spec.max_blocks_per_host < 0:
        yield Problem("spec.maxBlocksPerHost", resource.spec.max_blocks_per_host, "must be 0 (no limit) or more")
