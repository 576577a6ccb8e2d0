"""Which networks this host's Docker should have, where no cluster store carries them: pure decisions.

What Docker has here, what the cluster shares and what this node has noted go in; actions come out. A local network is
*linked* when this node has noted its Docker id for a shared network's uid: then it was made for that one, or was found
to be the same. Only linked networks are removed, apart from the loser of a race (both made within a minute, and they
differ). Networks of other drivers are never touched. docs/networks.md tells the whole story.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from calico_plugin.model.docker import CREATING, READY, NetworkSpec, SharedMember, SharedNetwork

# Two networks of one name made within this time were made at once.
RACE_SECONDS = 60.0
_TIME = re.compile(r"(.{10}T[\d:]{8})(?:\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A network of this host's Docker. `ours`: of our driver, scope local, made by a plain `docker network create`."""

    id: str
    name: str
    driver: str
    ours: bool
    created: str
    spec: NetworkSpec


@dataclass(frozen=True, slots=True)
class Publish:
    """Share it; `over` is the deleted one that it replaces."""

    network: LocalNetwork
    over: SharedNetwork | None = None


@dataclass(frozen=True, slots=True)
class Adopt:
    """Note that it is the shared one."""

    network: LocalNetwork
    shared: SharedNetwork


@dataclass(frozen=True, slots=True)
class Create:
    shared: SharedNetwork


@dataclass(frozen=True, slots=True)
class Remove:
    """Unless it is in use. `why` in words; `raced`: it was made here at the same time as the shared one elsewhere."""

    network: LocalNetwork
    shared: SharedNetwork
    why: str
    raced: bool = False


@dataclass(frozen=True, slots=True)
class RemoveTwin:
    """Unless it is in use. Docker checks a name before it makes a network, so a user's command and ours, at the same
    moment, may make two of one name on one host; then neither can be named any more.
    """

    network: LocalNetwork
    shared: SharedNetwork


@dataclass(frozen=True, slots=True)
class Refuse:
    """The shared network cannot be here; `why` in words."""

    shared: SharedNetwork
    why: str


@dataclass(frozen=True, slots=True)
class Forget:
    """What was noted for it is void."""

    name: str


@dataclass(frozen=True, slots=True)
class Bury:
    """It is deleted, and gone from this host: the record may go when it is gone from all."""

    shared: SharedNetwork


Action = Publish | Adopt | Create | Remove | RemoveTwin | Refuse | Forget | Bury


def decide(
    local: Iterable[LocalNetwork], shared: Mapping[str, SharedNetwork], members: Mapping[str, SharedMember]
) -> list[Action]:
    """What to do now; empty when all is as it should be. `members` are this node's, by network name."""
    by_name: dict[str, list[LocalNetwork]] = {}
    for network in local:
        by_name.setdefault(network.name, []).append(network)
    actions: list[Action] = []
    for name in sorted({*by_name, *shared, *members}):
        actions += _decide(name, by_name.get(name, ()), shared.get(name), members.get(name))
    return actions


def same(one: NetworkSpec, other: NetworkSpec) -> bool:
    """Equal but for the names under which the driver is known there."""
    return _bare(one) == _bare(other)


def difference(one: NetworkSpec, other: NetworkSpec) -> str:
    """In what two differ, in words."""
    first, second = _bare(one), _bare(other)
    fields = [name for name in NetworkSpec.__struct_fields__ if getattr(first, name) != getattr(second, name)]
    pairs = ((name, _words(getattr(one, name)), _words(getattr(other, name))) for name in fields)
    return ", ".join(f"{name} {here} here, {there} there" for name, here, there in pairs)


def _decide(
    name: str, local: Sequence[LocalNetwork], shared: SharedNetwork | None, member: SharedMember | None
) -> Iterator[Action]:
    ours = [one for one in local if one.ours]
    mine = _chosen(ours, member)
    if mine is not None:
        yield from _present(mine, shared, member)
        yield from _twins(mine, ours, shared, member)
    elif shared is None:
        if member is not None:
            yield Forget(name)
    elif shared.deleted:
        yield Forget(name) if member is not None else Bury(shared)
    elif local:
        yield Refuse(shared, f"a network of driver {local[0].driver} has the name")
    else:
        yield Create(shared)


def _present(mine: LocalNetwork, shared: SharedNetwork | None, member: SharedMember | None) -> Iterator[Action]:
    if shared is None:
        yield Publish(mine)
        return
    linked = _link(mine, shared, member)
    if shared.deleted:
        # Without a link it was made after the other one was removed.
        yield Remove(mine, shared, f"it was removed on {shared.deleted_on}") if linked else Publish(mine, shared)
    elif linked == shared.uid or same(mine.spec, shared.spec):
        if member is None or (member.uid, member.network_id, member.state) != (shared.uid, mine.id, READY):
            yield Adopt(mine, shared)
    elif linked:
        yield Remove(mine, shared, f"it was removed and made anew on {shared.created_on}")
    elif _raced(mine, shared):
        why = f"{shared.created_on} made one of that name at the same time: {difference(mine.spec, shared.spec)}"
        yield Remove(mine, shared, why, raced=True)
    else:
        why = f"a network made here differs from that of {shared.created_on}: {difference(mine.spec, shared.spec)}"
        yield Refuse(shared, why)


def _twins(
    mine: LocalNetwork, ours: Sequence[LocalNetwork], shared: SharedNetwork | None, member: SharedMember | None
) -> Iterator[Action]:
    if shared is None or shared.deleted or member is None or (member.uid, member.network_id) != (shared.uid, mine.id):
        return
    yield from (RemoveTwin(one, shared) for one in ours if one is not mine and _raced(one, shared))


def _chosen(ours: Sequence[LocalNetwork], member: SharedMember | None) -> LocalNetwork | None:
    """Docker's API allows several networks of one name: the linked one counts, else the oldest."""
    noted = member.network_id if member is not None else ""
    return min(ours, key=lambda one: (one.id != noted, one.created, one.id), default=None)


def _link(mine: LocalNetwork, shared: SharedNetwork, member: SharedMember | None) -> str:
    """Uid of the shared network that this one was made for; empty for none."""
    if member is None:
        return ""
    if member.network_id == mine.id:
        return member.uid
    # We were interrupted between making it and noting its id.
    interrupted = member.state == CREATING and member.uid == shared.uid and same(mine.spec, shared.spec)
    return member.uid if interrupted else ""


def _raced(mine: LocalNetwork, shared: SharedNetwork) -> bool:
    here, there = seconds(mine.created), seconds(shared.created)
    return here is not None and there is not None and abs(here - there) < RACE_SECONDS


def seconds(created: str) -> float | None:
    """Unix time of Docker's RFC 3339 text, to the second (it has nine digits behind); None for what is none."""
    found = _TIME.fullmatch(created)
    try:
        return datetime.fromisoformat(found[1] + found[2].replace("Z", "+00:00")).timestamp() if found else None
    except ValueError:
        return None


def _bare(spec: NetworkSpec) -> NetworkSpec:
    maps = {name: getattr(spec, name) or {} for name in ("ipam_options", "options", "labels")}
    # Only the order within a family means anything, and releases of Docker show the families in different orders.
    ranges = tuple(sorted(spec.ranges, key=lambda one: ":" in one.subnet))
    return replace(spec, driver="", ipam_driver="", ranges=ranges, **maps)


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return " + ".join(one.subnet for one in value) or "none"
    return str(value) if value not in ({}, "", None) else "none"
