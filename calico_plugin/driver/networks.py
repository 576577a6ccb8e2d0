"""What CreateNetwork and DeleteNetwork mean: a record in etcd that every host can rely on.

CreateNetwork arrives on one host only, and never again, so all that it tells is stored. It does not tell the
network's name; the agent adds that, and the profile made from it. DeleteNetwork takes the record away and, with the
last record of a name, its profile; a network that agents carry to all hosts is marked as deleted in the same commit.
"""

from __future__ import annotations

import msgspec

from calico_plugin.datastore.kv import Compare, Delete, KeyValue, Put
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.driver.view import View
from calico_plugin.driver.wire import CreateNetwork
from calico_plugin.errors import AlreadyExists, Conflict, CorruptValue
from calico_plugin.model import codec, keys
from calico_plugin.model.codec import Stored
from calico_plugin.model.docker import CREATING, NetworkRecord, SharedMember, SharedNetwork

_TRIES = 8


class Networks:
    """`node` is this host's name in the records; with `own_profiles` a profile goes with the last network of its
    name.
    """

    def __init__(self, store: Store, view: View, node: str, own_profiles: bool = True) -> None:
        self._store, self._view, self._node, self._own_profiles = store, view, node, own_profiles

    def create(self, call: CreateNetwork, deadline: Deadline) -> None:
        """Record the network; one that is recorded keeps the name that the agent gave it."""
        record = NetworkRecord(
            network_id=call.network,
            internal=call.internal,
            enable_ipv6=call.enable_ipv6,
            pools4=call.pools4,
            pools6=call.pools6,
            options=dict(call.raw_options),
            created_on=self._node,
            reserved={str(address): what for address, what in call.reserved.items()},
        )
        for _ in range(_TRIES):
            try:
                self._enter(self._store.networks.create(call.network, record, deadline))
                return
            except AlreadyExists as error:
                stored = error.current
            if isinstance(stored, Stored) and self._renew(stored, record, deadline):
                return
        raise Conflict(f"network {call.network}", hint="another program keeps changing its record in etcd; try again")

    def delete(self, network: str, deadline: Deadline) -> None:
        """Forget the network, with its profile when no other network has its name. Unknown ones are gone already."""
        for _ in range(_TRIES):
            listing = self._store.kv.list(keys.NETWORKS, deadline)
            records = {item.key: (item, _readable(item)) for item in listing.items}
            key = keys.network(network)
            if key not in records:
                return
            item, record = records.pop(key)
            others = [
                other.key for other, found in records.values() if record and found and found.name == record.name
            ]
            operations: list[Put | Delete] = [Delete(key)]
            compares = [Compare(key, item.revision)]
            self._unshare(network, record, operations, compares, deadline)
            if record and record.name and record.profile and self._own_profiles and not others:
                operations.append(Delete(keys.resource("Profile", record.profile)))
                # Nobody may record a network of that name between our look and our commit.
                compares.append(Compare(keys.NETWORKS, listing.revision, prefix=True))
            else:
                # Were they all deleted at this moment, each leaving the profile to the other, nobody would delete it.
                compares += [Compare(other, records[other][0].revision) for other in others[:1]]
            commit = self._store.kv.commit(compares, operations, deadline)
            if commit.succeeded:
                self._view.removed(key, commit.revision)
                return
        raise Conflict(f"network {network}", hint="other networks keep changing in etcd at the same time; try again")

    def _unshare(
        self,
        network: str,
        record: NetworkRecord | None,
        operations: list[Put | Delete],
        compares: list[Compare],
        deadline: Deadline,
    ) -> None:
        """Whoever removes what this host has of a shared network means all of it (the agents' own removals find it
        deleted already, or replaced by another).
        """
        if record is None or not record.name:
            return
        shared_key, member_key = keys.shared_network(record.name), keys.shared_member(self._node, record.name)
        found = self._store.kv.get_many([shared_key, member_key], deadline)
        shared_item, member_item = found.get(shared_key), found.get(member_key)
        # A network may become shared, or a replica be noted, at this moment.
        compares.append(Compare(shared_key, shared_item.revision if shared_item else 0))
        if shared_item is None or member_item is None:
            return
        try:
            shared = codec.decode(SharedNetwork, shared_key, shared_item.value)
            member = codec.decode(SharedMember, member_key, member_item.value)
        except CorruptValue:
            return
        mine = member.network_id == network or member.state == CREATING
        if mine and member.uid == shared.uid and not shared.deleted:
            gone = msgspec.structs.replace(shared, deleted=True, deleted_on=self._node)
            operations.append(Put(shared_key, codec.encode(gone)))
            compares.append(Compare(member_key, member_item.revision))

    def _renew(self, stored: Stored[NetworkRecord], record: NetworkRecord, deadline: Deadline) -> bool:
        """Bring the stored record up to what Docker says now; False when it was changed or deleted meanwhile."""
        old = stored.value
        wanted = msgspec.structs.replace(
            record, name=old.name, profile=old.profile, created_on=old.created_on or record.created_on
        )
        if wanted == old:
            return True
        commit = self._store.networks.change(record.network_id, stored, wanted)
        outcome = self._store.kv.commit((commit.compare,), (commit.operation,), deadline)
        if outcome.succeeded:
            self._view.wrote(stored.key, codec.encode(wanted), outcome.revision)
        return outcome.succeeded

    def _enter(self, stored: Stored[NetworkRecord]) -> None:
        self._view.wrote(stored.key, codec.encode(stored.value), stored.revision)


def _readable(item: KeyValue) -> NetworkRecord | None:
    try:
        return codec.decode(NetworkRecord, item.key, item.value)
    except CorruptValue:
        return None
