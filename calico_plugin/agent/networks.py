"""What Docker's networks mean in the cluster: the record gets its name, the network its profile (decision 7 of the
design).

The driver's CreateNetwork learns no name, and on a second host it is never called; so whoever hears of a network
completes what is missing. Everything is compare-and-swap and may be done by several agents at once. What a user
changed in a profile stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from msgspec.structs import replace

from calico_plugin.agent.docker_api import DockerNetwork
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Conflict, CorruptValue, NotFound
from calico_plugin.model import names
from calico_plugin.model.codec import Stored
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.resources import Metadata, Profile, Rule
from calico_plugin.model.resources.policy import EntityRule, ProfileSpec

SECONDS = 10.0
_TRIES = 5


def network_profile(name: str, profile: str) -> Profile:
    """Members of the network may talk to each other, and to everybody else."""
    label = names.network_label(name)
    return Profile(
        metadata=Metadata(name=profile),
        spec=ProfileSpec(
            ingress=(Rule(action="Allow", source=EntityRule(selector=f"has({label})")),),
            egress=(Rule(action="Allow"),),
            labels_to_apply={label: ""},
        ),
    )


@dataclass(frozen=True, slots=True)
class Networks:
    """The cluster's side of Docker's networks."""

    store: Store
    node: str
    create_profiles: bool

    def complete(self, network: DockerNetwork) -> bool:
        """Record named, profile there; whether anything had to be written.

        Raises DatastoreError, Conflict after many tries.
        """
        for attempt in range(_TRIES):
            try:
                return self._complete(network, Deadline(SECONDS))
            except (AlreadyExists, NotFound, Conflict):
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError("not reached")

    def records(self) -> dict[str, Stored[NetworkRecord]]:
        """All records by network id."""
        return {one.value.network_id: one for one in self.store.networks.list(Deadline(SECONDS)).items}

    def forget(self, stored: Stored[NetworkRecord]) -> None:
        """The network is gone from Docker and the driver did not hear of it: its record, and the profile that nobody
        else needs.

        Raises Conflict when somebody changes the record meanwhile.
        """
        deadline = Deadline(SECONDS)
        record = stored.value
        planned = [self.store.networks.removal(record.network_id, stored)]
        others = (one.value for one in self.store.networks.list(deadline).items)
        needed = any(one.profile == record.profile for one in others if one.network_id != record.network_id)
        if record.profile and not needed:
            profiles = self.store.resources(Profile)
            if (profile := profiles.find(record.profile, deadline)) is not None:
                planned.append(profiles.removal(profile))
        self.store.commit(planned, deadline)
        _log().info("network is gone from Docker; its record is removed", network=record.name or record.network_id)

    def _complete(self, network: DockerNetwork, deadline: Deadline) -> bool:
        profile = names.network_profile(network.name)
        planned = []
        try:
            stored = self.store.networks.find(network.id, deadline)
        except CorruptValue as error:
            _log().error("the record of a network does not parse; delete it to have it made anew", error=str(error))
            return False
        if stored is None:
            planned.append(self.store.networks.creation(network.id, self._whole(network, profile)))
        elif (stored.value.name, stored.value.profile) != (network.name, profile):
            named = replace(stored.value, name=network.name, profile=profile)
            planned.append(self.store.networks.change(network.id, stored, named))
        profiles = self.store.resources(Profile)
        if self.create_profiles and profiles.find(profile, deadline) is None:
            planned.append(profiles.creation(network_profile(network.name, profile)))
            self._tell_label(network.name)
        if planned:
            self.store.commit(planned, deadline)
            _log().info("network is known", network=network.name, id=network.id[:12], profile=profile)
        return bool(planned)

    def _whole(self, network: DockerNetwork, profile: str) -> NetworkRecord:
        """A record from what Docker knows; a network that all hosts share was made by none in particular."""
        return NetworkRecord(
            network_id=network.id,
            name=network.name,
            profile=profile,
            internal=network.internal,
            enable_ipv6=network.ipv6,
            pools4=tuple(subnet for subnet in network.subnets if ":" not in subnet),
            pools6=tuple(subnet for subnet in network.subnets if ":" in subnet),
            options=dict(network.options),
            created_on=self.node if network.scope == "local" else "",
            reserved=dict(network.reserved),
        )

    def _tell_label(self, name: str) -> None:
        if (label := names.network_label(name)) != name:
            event = "a network's name is no legal label; policy finds its containers by another"
            _log().warning(event, network=name, label=label)


def _log() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(part="docker")
    return logger
