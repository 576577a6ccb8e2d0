"""The texts of `calicoctl ipam show` (node-and-cli 4.8)."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Iterator

from calico_plugin.cli.output import boxed
from calico_plugin.cli.session import Session
from calico_plugin.errors import InvalidInput, NotFound
from calico_plugin.model.ipam import AllocationAttribute, Block

_RIGHT = (False, False, True, True, True, True)
_EXACT_BELOW = 100000


def parse_address(text: str) -> str:
    """The address in its usual form. Raises InvalidInput."""
    try:
        return str(ip_address(text))
    except ValueError as error:
        raise InvalidInput("--ip", text, "must be an IPv4 or IPv6 address") from error


def address(session: Session, text: str) -> str:
    """Whose an address is."""
    shown = parse_address(text)
    try:
        found = session.allocator.attributes_of(shown, session.deadline())
    except NotFound as error:
        rests = str(error).partition("; ")[2]
        return f"{text} is not assigned" + (f" ({rests})" if rests else "") + "\n"
    lines = [f"IP {text} is in use", f"Handle ID: {found.handle or '<none>'}"]
    if found.attributes:
        lines.append("Active Owner Attributes:")
        lines.extend(f"  {name}: {found.attributes[name]}" for name in sorted(found.attributes))
    else:
        lines.append("No Active Owner attributes defined")
    return "\n".join(lines) + "\n"


def pools(session: Session, with_blocks: bool) -> str:
    """One row for each pool, with its blocks; then the blocks outside any pool."""
    rows: list[list[str]] = []
    for use in session.allocator.utilisation(session.deadline()):
        if use.pool is not None:
            rows.append(_row("IP Pool", str(use.pool.cidr), use))
        if with_blocks:
            rows.extend(_row("Block", str(block.cidr), block) for block in use.blocks)
    return boxed(["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE"], rows, _RIGHT)


def _row(grouping: str, cidr: str, use: Any) -> list[str]:
    shares = (_share(number, use.capacity) for number in (use.in_use, use.reserved, use.available))
    return [grouping, cidr, _total(use.capacity), *shares]


def _total(number: int) -> str:
    """Five significant digits, as Go's %.5g writes them."""
    return str(number) if number < _EXACT_BELOW else f"{number:.5g}"


def _share(number: int, capacity: int) -> str:
    percent = round(100 * number / capacity) if capacity else 0
    return f"{_total(number)} ({percent}%)"


def configuration(session: Session) -> str:
    from calico_plugin.ipam import get_config

    config = get_config(session.kv, session.deadline())
    rows = [
        ["StrictAffinity", str(config.strict_affinity).lower()],
        ["AutoAllocateBlocks", str(config.auto_allocate_blocks).lower()],
        ["MaxBlocksPerHost", str(config.max_blocks_per_host)],
        ["KubeVirtVMAddressPersistence", config.kube_virt_vm_address_persistence or "Enabled"],
        ["IPCooldownSeconds", str(config.ip_cooldown_seconds)],
    ]
    return boxed(["PROPERTY", "VALUE"], rows)


def borrowed(session: Session) -> str:
    """Addresses whose node is not the owner of their block."""
    rows: list[list[str]] = []
    unknown = 0
    for stored in session.store.blocks.list(session.deadline()).items:
        owner = (stored.value.affinity or "").removeprefix("host:")
        for place, attribute in allocations(stored.value):
            node = (attribute.secondary or {}).get("node", "")
            if not node:
                unknown += 1
            elif node != owner:
                kind = (attribute.secondary or {}).get("type", "")
                rows.append([place, node, stored.value.cidr, owner, kind, ""])
    text = boxed(["IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"], rows)
    if unknown:
        note = f"Note: found {unknown} IP allocations without an explicit node association."
        text += f"\n{note} Unable to determine if they are borrowed.\n"
    return text


def allocations(block: Block) -> Iterator[tuple[str, AllocationAttribute]]:
    """Every address in use of a block, with what is stored about it; those that only rest are left out."""
    address, _, _ = block.cidr.partition("/")
    base = ip_address(address)
    attributes = block.attributes or ()
    for ordinal, index in enumerate(block.allocations):
        if index is not None and 0 <= index < len(attributes) and not attributes[index].released_at:
            yield str(base + ordinal), attributes[index]
