"""Policy as the loop sees it: updates go in, the table follows, and it is known whose policy is in force where.

Others may change our table (`nft flush ruleset`): the kernel's count of transactions tells that somebody changed
something, and then ours is audited.
"""

from __future__ import annotations

from typing import Callable, Mapping

import structlog

from calico_plugin.dataplane.nftables import Table
from calico_plugin.errors import DataplaneError
from calico_plugin.model.codec import Invalid
from calico_plugin.model.desired import Ruleset
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.published import Published
from calico_plugin.model.resources import Resource
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.problems import POLICY, Problems
from calico_plugin.policy import PolicyEngine

# Resources that metrics and files name at most.
_NAMED = 100
_EFFECTS = {
    "FelixConfiguration": "the default holds",
    "HostEndpoint": "what it governs fails closed, other interfaces stay as they are",
}


class Policy:
    """Owned by the loop's thread. `in_force` (interface -> endpoint) and `published` (interface -> ports of the host
    that lead to it) only change when the kernel took the rules.

    `generation` is the kernel's count of transactions (dataplane.generation). `applied` is told every ruleset that is
    in force and must return at once; `files` are told what is not understood.
    """

    def __init__(
        self,
        engine: PolicyEngine,
        table: Table,
        metrics: Metrics,
        generation: Callable[[], int] = lambda: 0,
        applied: Callable[[Ruleset], None] = lambda ruleset: None,
        files: Problems | None = None,
    ) -> None:
        self._applied, self._files = applied, files
        self._engine, self._table, self._metrics, self._generation = engine, table, metrics, generation
        # What the kernel's count is while nobody else changes anything.
        self._expected: int | None = None
        self._dirty = self.failed = self._told = False
        self._ruleset = Ruleset()
        # None: an earlier agent's may still stand in the file.
        self._problems: Mapping[ResourceKey, str] | None = None
        self.in_force: Mapping[str, ResourceKey] = {}
        self.published: Mapping[str, tuple[Published, ...]] = {}
        self._log = structlog.get_logger(part="policy")

    @property
    def dirty(self) -> bool:
        return self._dirty

    def touch(self) -> None:
        self._dirty = True

    def bootstrap(self) -> None:
        """Before anything is known: drop all traffic of containers, unless an earlier agent's table is there."""
        try:
            if self._table.bootstrap(self._engine.compile()):
                self._log.info("no table yet; all traffic of containers is dropped until the first pass")
        except DataplaneError as error:
            self._log.error("no table could be made; containers are not policed yet", error=str(error))

    def on_update(self, key: ResourceKey, old: Resource | None, new: Resource | Invalid | None) -> None:
        self._engine.on_update(key, old, new)
        self._dirty = True

    def on_namespace(self, interface: str, namespace: int | None) -> None:
        """Where the container's end of a link is."""
        if self._engine.on_namespace(interface, namespace):
            self._dirty = True

    @property
    def wants_interfaces(self) -> bool:
        return self._engine.wants_interfaces

    def on_interfaces(self, interfaces: Mapping[str, frozenset[str]], links: Mapping[str, bool]) -> None:
        """Addresses of the host's interfaces; of each link whether it is up."""
        self._engine.on_interfaces(interfaces, links)
        self._dirty = True

    def host_endpoints(self) -> Mapping[str, str]:
        """Name of each host endpoint of this node -> `up`, `down`, or `error` when it governs no interface."""
        return self._engine.host_endpoints()

    def take_joined(self) -> set[str]:
        """Interfaces of containers that have several, where that is news."""
        return self._engine.take_joined()

    def apply(self) -> str:
        """Bring the table up to date; what was written, in words. Raises DataplaneError; then it stays dirty."""
        ruleset = self._engine.compile()
        self.failed = True
        if self._expected is None:
            self._expected = self._generation()
        try:
            applied = self._table.apply(ruleset)
        except DataplaneError:
            self._metrics.nft_errors.inc()
            raise
        self.failed = self._dirty = False
        self._ruleset = ruleset
        if applied:
            self._expected += 1
            self._tell_refused(applied.refused)
        if applied or not self._told:
            self._told = True
            self._applied(ruleset)
        self.in_force = dict(self._engine.interfaces())
        self.published = self._engine.published() if self._table.translates() else {}
        self._tell_problems()
        if not applied:
            return ""
        self._metrics.nft_calls.inc(applied.attempts)
        return (
            f"wrote {applied.chains} chains, {applied.elements} map elements, {applied.members} set members"
            f" and removed {applied.removed} objects"
        )

    def audit(self) -> tuple[str, ...]:
        """Names of objects that others had changed; they are repaired."""
        try:
            before = self._generation()
            found = self._table.audit()
            self._expected = before + bool(found)
            return found
        except DataplaneError as error:
            self._log.warning("the table could not be audited", error=str(error))
            return ()

    def is_disturbed(self) -> bool:
        """Whether somebody else changed nftables since the last audit. Raises DataplaneError."""
        return self._generation() != self._expected

    def count(self) -> None:
        """Sizes for the metrics."""
        self._metrics.nft_chains.set(len(self._ruleset.chains))
        self._metrics.nft_rules.set(sum(len(chain.rules) for chain in self._ruleset.chains.values()))
        self._metrics.nft_sets.set(len(self._ruleset.sets))

    def close(self) -> None:
        self._table.close()

    def _tell_refused(self, refused: tuple[tuple[str, str], ...]) -> None:
        for chain, why in refused:
            self._log.error("the kernel refuses a chain; it drops everything instead", chain=chain, why=why)

    def _tell_problems(self) -> None:
        problems = dict(self._engine.problems())
        if problems == self._problems:
            return
        before = self._problems or {}
        for key, why in problems.items():
            if before.get(key) != why:
                self._log.error(f"a resource does not hold as written; {_effect(key)}", resource=str(key), why=why)
        self._problems = problems
        self._metrics.policy_problems.clear()
        for key in list(problems)[:_NAMED]:
            self._metrics.policy_problems.labels(str(key)).set(1)
        self._metrics.policy_not_understood.set(len(problems))
        if self._files is not None:
            self._files.tell(POLICY, [f"{key}: {why}; {_effect(key)}" for key, why in problems.items()][:_NAMED])


def _effect(key: ResourceKey) -> str:
    return _EFFECTS.get(key.kind, "it fails closed")
