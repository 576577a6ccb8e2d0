"""Carries networks from host to host where no cluster store does it: what `shared` decides is done here.

Runs in the Docker thread of every agent. Nothing is remembered that is not in etcd or Docker, so that a host that was
away, or an agent that was ended in the midst of it, goes on from what is there. Every write of this node's notes is
bound to the shared network as it was seen; whoever comes second looks again.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Callable, Collection, Mapping, Sequence

import structlog
from msgspec.structs import replace

from calico_plugin.agent import shared
from calico_plugin.agent.docker_api import DockerApi, DockerNetwork
from calico_plugin.agent.shared import LocalNetwork
from calico_plugin.datastore.kv import Compare, Delete, Put
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import Conflict, DockerBusy, DockerError, DockerTaken, NotFound
from calico_plugin.model import codec, keys
from calico_plugin.model.codec import Stored
from calico_plugin.model.docker import (
    CONFLICT,
    CREATING,
    FAILED,
    IN_USE,
    READY,
    NetworkSpec,
    SharedMember,
    SharedNetwork,
)
from calico_plugin.model.resources import Node
from calico_plugin.observe.problems import NETWORKS, Problems

AUTO, ON, OFF = "auto", "true", "false"
# The names of our sockets, which a managed plugin has, too; only there it also has one with a tag.
PLAIN_DRIVER, PLAIN_IPAM = "calico", "calico-ipam"
SECONDS = 10.0
# A network that is removed and made anew takes two looks; a race one more.
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Replication:
    """`setting`: auto, true or false; `local_only`: the driver's scope is not fixed to global."""

    setting: str
    local_only: bool


class Replicator:
    """Owned by the Docker thread. `drivers` are the names under which Docker knows our driver."""

    def __init__(
        self,
        replication: Replication,
        store: Store,
        node: str,
        drivers: Collection[str],
        problems: Problems,
        new_uid: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._replication, self._store, self._node, self._drivers = replication, store, node, drivers
        self._problems, self._new_uid = problems, new_uid
        self._shared: Mapping[str, Stored[SharedNetwork]] = {}
        self._members: dict[str, SharedMember] = {}
        self._destroyed: dict[str, None] = {}
        self._sentences: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._log = structlog.get_logger(part="networks")

    def applies(self, api: DockerApi) -> bool:
        """Whether networks are carried by us on this host: `auto` means, unless a cluster store does."""
        if self._replication.setting != AUTO:
            return self._replication.setting == ON
        return self._replication.local_only and not api.has_cluster_store()

    def leave(self) -> None:
        """This host takes no part: what happens to its networks concerns no other."""
        self._read()
        for name in tuple(self._members):
            self._forget(name)
        self._problems.tell(NETWORKS, ())

    def destroyed(self, network_id: str) -> None:
        """Docker says that a network of ours was removed. (The driver hears of it too, unless it is away.)"""
        self._destroyed[network_id] = None

    def run(self, api: DockerApi, listed: Sequence[DockerNetwork], thorough: bool) -> bool:
        """Bring Docker and the cluster together; whether to look again soon. `thorough`: also for what others left."""
        soon = False
        for _ in range(_ROUNDS):
            self._sentences = {}
            self._read()
            self._bring_out_your_dead()
            local = [self._local(one) for one in listed]
            actions = shared.decide(local, {name: one.value for name, one in self._shared.items()}, self._members)
            again = (shared.Remove, shared.RemoveTwin, shared.Bury)
            soon = any(isinstance(action, again) for action in actions)
            if not any([self._do(api, action, thorough) for action in actions]):
                break
            listed = api.networks()
        self._tell()
        return soon

    def _read(self) -> None:
        deadline = Deadline(SECONDS)
        found = self._store.shared_networks.list(deadline)
        for invalid in found.invalid:
            self._sentences[invalid.key] = f"{invalid.key} does not parse ({invalid.why}); delete it"
        self._shared = {one.value.name: one for one in found.items}
        mine = self._store.shared_members.list(deadline, keys.shared_members(self._node))
        self._members = {one.value.name: one.value for one in mine.items}

    def _bring_out_your_dead(self) -> None:
        dead = [one for one in self._members.values() if one.network_id in self._destroyed]
        for member in dead:
            stored = self._shared.get(member.name)
            if stored is not None and stored.value.uid == member.uid and not stored.value.deleted:
                gone = replace(stored.value, deleted=True, deleted_on=self._node)
                key = keys.shared_member(self._node, member.name)
                self._commit(stored, Put(stored.key, codec.encode(gone, stored.document)), Delete(key))
        self._destroyed.clear()
        if dead:
            self._read()

    def _local(self, network: DockerNetwork) -> LocalNetwork:
        ours = network.driver in self._drivers and network.scope == "local" and network.plain
        return LocalNetwork(network.id, network.name, network.driver, ours, network.created, network.spec)

    # Each returns whether to look again.

    def _do(self, api: DockerApi, action: shared.Action, thorough: bool) -> bool:
        match action:
            case shared.Publish(network, over):
                return self._publish(network, over)
            case shared.Adopt(network, seen):
                return not self._note(seen, READY, network.id)
            case shared.Create(seen):
                return self._create(api, seen, thorough)
            case shared.Remove():
                return self._remove(api, action)
            case shared.RemoveTwin(network, seen):
                return self._remove_twin(api, network, seen)
            case shared.Refuse(seen, why):
                self._say(seen.name, f"is not made on this host: {why}")
                return not self._note(seen, CONFLICT, detail=why)
            case shared.Forget(name):
                self._forget(name)
                return True
            case shared.Bury(seen):
                self._bury(seen, thorough)
        return False

    def _publish(self, network: LocalNetwork, over: SharedNetwork | None) -> bool:
        """Bound to the driver's record: when the network was removed meanwhile, that is gone."""
        record = self._store.networks.find(network.id, Deadline(SECONDS))
        if record is None:
            return False
        fresh = SharedNetwork(
            name=network.name, uid=self._new_uid(), spec=network.spec, created=network.created, created_on=self._node
        )
        key = keys.shared_network(network.name)
        member = SharedMember(name=network.name, node=self._node, uid=fresh.uid, network_id=network.id)
        done = self._commit(
            self._shared.get(network.name) if over is not None else Compare(key, 0),
            Put(key, codec.encode(fresh)),
            Put(keys.shared_member(self._node, network.name), codec.encode(member)),
            also=Compare(record.key, record.revision),
        )
        if done:
            self._log.info("network is shared with all hosts", network=network.name, id=network.id[:12])
        return True

    def _create(self, api: DockerApi, seen: SharedNetwork, thorough: bool) -> bool:
        before = self._members.get(seen.name)
        if before is not None and (before.uid, before.state) == (seen.uid, FAILED) and not thorough:
            self._say(seen.name, f"cannot be made on this host: {before.detail}")
            return False
        if not self._note(seen, CREATING):
            return True
        try:
            network_id = api.create_network(seen.name, _as_known_here(seen.spec, api))
        except DockerTaken:
            self._forget(seen.name)
            return True
        except DockerError as error:
            self._say(seen.name, f"cannot be made on this host: {error}")
            self._note(seen, FAILED, detail=str(error))
            return False
        self._log.info("made a network of another host", network=seen.name, host=seen.created_on, id=network_id[:12])
        return not self._note(seen, READY, network_id)

    def _remove(self, api: DockerApi, action: shared.Remove) -> bool:
        network, member = action.network, self._members.get(action.network.name)
        try:
            api.remove_network(network.id)
        except DockerBusy:
            users = ", ".join(api.network_users(network.id)) or "containers"
            self._say(network.name, f"is still in use on this host by {users}; {action.why}")
            if action.raced:
                self._note(action.shared, CONFLICT, detail=f"{action.why}; in use by {users}")
            elif member is not None:
                self._keep(replace(member, network_id=network.id, state=IN_USE, detail=users), action.shared)
            return False
        except DockerError as error:
            self._say(network.name, f"cannot be removed from this host: {error}")
            return False
        tell = self._log.warning if action.raced else self._log.info
        tell("removed a network", network=network.name, id=network.id[:12], why=action.why)
        self._forget(network.name)
        return True

    def _remove_twin(self, api: DockerApi, network: LocalNetwork, seen: SharedNetwork) -> bool:
        """The notes are about the other one: they stay."""
        which = f"{network.id[:12]}, made here at the same time as that of {seen.created_on}"
        try:
            api.remove_network(network.id)
        except DockerBusy:
            users = ", ".join(api.network_users(network.id)) or "containers"
            self._say(network.name, f"is there twice on this host: {which}, is in use by {users}")
            return False
        except DockerError as error:
            self._say(network.name, f"is there twice on this host: {which}, cannot be removed: {error}")
            return False
        self._log.warning("removed the second network of a name", network=network.name, id=which)
        return True

    def _bury(self, seen: SharedNetwork, thorough: bool) -> None:
        """The host where it was removed looks after this, and others now and then: it may be gone for good."""
        if seen.deleted_on != self._node and not thorough:
            return
        deadline = Deadline(SECONDS)
        nodes = {one.value.name for one in self._store.resources(Node).list(deadline).items}
        everywhere = self._store.shared_members.list(deadline).items
        noted = [one.value for one in everywhere if one.value.name == seen.name and one.value.uid == seen.uid]
        left = [one for one in noted if one.node in nodes]
        if not left:
            void = [Delete(keys.shared_member(one.node, seen.name)) for one in noted]
            self._commit(self._shared[seen.name], Delete(keys.shared_network(seen.name)), *void)
            return
        used = "; ".join(f"{one.node} ({one.detail})" for one in left if one.state == IN_USE)
        if used and seen.deleted_on == self._node:
            self._say(seen.name, f"was removed here, and is still in use on {used}")

    # Notes

    def _note(self, seen: SharedNetwork, state: str, network_id: str = "", detail: str = "") -> bool:
        wanted = SharedMember(
            name=seen.name, node=self._node, uid=seen.uid, network_id=network_id, state=state, detail=detail
        )
        return self._keep(wanted, seen)

    def _keep(self, wanted: SharedMember, seen: SharedNetwork) -> bool:
        """False when the shared network is another by now."""
        if self._members.get(wanted.name) == wanted:
            return True
        key = keys.shared_member(self._node, wanted.name)
        done = self._commit(self._shared[seen.name], Put(key, codec.encode(wanted)))
        if done:
            self._members[wanted.name] = wanted
        return done

    def _forget(self, name: str) -> None:
        self._members.pop(name, None)
        try:
            self._store.shared_members.delete(f"{self._node} {name}", Deadline(SECONDS))
        except (NotFound, Conflict):
            pass

    def _commit(
        self,
        bound: Stored[SharedNetwork] | Compare | None,
        *operations: Put | Delete,
        also: Compare | None = None,
    ) -> bool:
        if bound is None:
            return False
        compare = bound if isinstance(bound, Compare) else Compare(bound.key, bound.revision)
        compares = [compare, also] if also is not None else [compare]
        return self._store.kv.commit(compares, operations, Deadline(SECONDS)).succeeded

    # Words

    def _say(self, name: str, sentence: str) -> None:
        self._sentences[name] = f"network {name} {sentence}"

    def _tell(self) -> None:
        for name, sentence in self._sentences.items():
            if self._told.get(name) != sentence:
                self._log.warning(sentence)
        self._told = dict(self._sentences)
        self._problems.tell(NETWORKS, sorted(self._sentences.values()))


def _as_known_here(spec: NetworkSpec, api: DockerApi) -> NetworkSpec:
    """Where it was made the driver may be a managed plugin, and none here: Docker would look for it for 15 s."""
    if ":" not in spec.driver + spec.ipam_driver or spec.driver in api.network_plugins():
        return spec
    return replace(spec, driver=PLAIN_DRIVER, ipam_driver=PLAIN_IPAM)
