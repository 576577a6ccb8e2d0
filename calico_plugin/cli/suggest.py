"""What a user probably meant with a name that does not exist: a hint for errors, looked up in the datastore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError
from calico_plugin.model import keys
from calico_plugin.model.problem import nearest

if TYPE_CHECKING:
    from calico_plugin.cli.session import Session
    from calico_plugin.model.resources import Resource

_SECONDS = 2.0
# A word for one of these often means the other: `policy` was cluster-wide in Calico 2.x.
_SIBLINGS = {
    "NetworkPolicy": "GlobalNetworkPolicy",
    "GlobalNetworkPolicy": "NetworkPolicy",
    "NetworkSet": "GlobalNetworkSet",
    "GlobalNetworkSet": "NetworkSet",
}


def name(session: Session, resource: Resource) -> str:
    """`did you mean X?` for the object that has the name elsewhere, or one with a name like it; else nothing."""
    try:
        return _by_address(session, resource) or _of_kind(session, resource) or _sibling(session, resource)
    except CalicoError:
        return ""


def names(session: Session, kind: str, seconds: float = _SECONDS) -> list[keys.ResourceKey]:
    """All objects of a kind, by their keys. Raises DatastoreError."""
    found = session.kv.list(keys.kind_prefix(kind), Deadline(seconds), keys_only=True).items
    return [key for item in found if (key := keys.parse_resource(item.key))]


def _by_address(session: Session, resource: Resource) -> str:
    """Calico 2.x called pools by their CIDR and peers by their address."""
    from calico_plugin.model.resources import BGPPeer, IPPool

    store, deadline = session.store, Deadline(_SECONDS)
    if resource.kind == "IPPool" and "/" in resource.name:
        pools = store.resources(IPPool).list(deadline).items
        found = [one.value.name for one in pools if one.value.spec.cidr == resource.name]
    elif resource.kind == "BGPPeer" and resource.name.replace(".", "").replace(":", "").isalnum():
        peers = store.resources(BGPPeer).list(deadline).items
        found = [one.value.name for one in peers if one.value.spec.peer_ip == resource.name]
    else:
        found = []
    return f"its name is {found[0]}" if found else ""


def _of_kind(session: Session, resource: Resource) -> str:
    known = names(session, resource.kind)
    here = [key.name for key in known if key.namespace == resource.namespace]
    elsewhere = [key for key in known if key.name == resource.name and key.namespace != resource.namespace]
    if elsewhere:
        return f"there is one in namespace {elsewhere[0].namespace}: add -n {elsewhere[0].namespace}"
    near = nearest(resource.name, here) or _with_tier(resource.name, here)
    if near:
        return f"did you mean {near}?"
    other = nearest(resource.name, [key.name for key in known])
    return next((f"did you mean {_typed(key)}?" for key in known if key.name == other), "") if other else ""


def _typed(key: keys.ResourceKey) -> str:
    """As a user writes it on the command line."""
    return f"{key.name} -n {key.namespace}" if key.namespace else key.name


def _with_tier(wanted: str, known: list[str]) -> str:
    """Policies that came from a v1 manifest have their tier in front."""
    return next((one for one in known if one.partition(".")[2] == wanted), "")


def _sibling(session: Session, resource: Resource) -> str:
    sibling = _SIBLINGS.get(resource.kind)
    if not sibling:
        return ""
    for key in names(session, sibling):
        if key.name == resource.name or key.name.partition(".")[2] == resource.name:
            return f"did you mean {sibling.lower()} {_typed(key)}?"
    return ""
