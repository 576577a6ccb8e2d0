"""Keeps BIRD's configuration in step with the cluster: rendered, judged by BIRD, loaded, and seen to be loaded.

Requests are collected for a moment, since a start or a mesh change brings many at once. What BIRD refuses is told
once and tried again with growing pauses; the configuration that BIRD runs on stays as it is meanwhile.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Callable, Mapping

import structlog

from calico_plugin.agent.worker import Worker
from calico_plugin.errors import CalicoError, RoutingError
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.observe.metrics import Metrics
from calico_plugin.policy.selector import SelectorError, parse
from calico_plugin.routing.apply import CONF_NAME, SOCKET_NAME, Outcome, load
from calico_plugin.routing.bird import render
from calico_plugin.routing.birdc import BirdClient

# Changes of these kinds, and of the own host's affinities, can change the configuration.
KINDS = ("Node", "BGPConfiguration", "BGPPeer", "BGPFilter", "IPPool")
DEBOUNCE = 0.1
_TURN = 2.0
# Turns between two looks at the sessions.
_LOOK_TURNS = 5
_MOVED_SECONDS = 2.0


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether a node selector matches. Raises ValueError, as the renderer expects of what makes no sense."""
    try:
        return parse(selector).match(labels)
    except SelectorError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Secrets:
    """Secrets as files `<directory>/<name>/<key>`, as mounts of Kubernetes and Docker lay them."""

    directory: Path

    def __call__(self, name: str, key: str) -> str | None:
        if any(part in ("", ".", "..") or "/" in part for part in (name, key)):
            return None
        try:
            return (self.directory / name / key).read_text().strip()
        except OSError:
            return None


class BirdWorker:
    """`submit` a snapshot whenever something of `KINDS` or the own affinities changed."""

    def __init__(
        self,
        node: str,
        run_dir: Path,
        metrics: Metrics,
        *,
        router_id: str = "",
        secrets: Secrets,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._node, self._run_dir, self._router_id, self._secrets = node, run_dir, router_id, secrets
        self._metrics, self._sleep = metrics, sleep
        self._client = BirdClient(run_dir / SOCKET_NAME)
        self._snapshot: Snapshot | None = None
        self._loaded: Snapshot | None = None
        self._problems: tuple[str, ...] = ()
        self._force = True
        self._turns = 0
        self._log = structlog.get_logger(part="bird")
        self.worker = Worker("bird", self._step, every=_TURN)

    def submit(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.worker.wake()

    def _step(self) -> None:
        if self._snapshot is not None and self._snapshot is not self._loaded:
            self._sleep(DEBOUNCE)
            self._try(self._snapshot)
        elif self._loaded is not None and self._is_behind():
            # BIRD started while the file was being written, or an earlier agent died between file and load.
            self._force = True
            self._try(self._loaded)
        if self._turns % _LOOK_TURNS == 0:
            self._look()
        self._turns += 1

    def _try(self, snapshot: Snapshot) -> None:
        try:
            self._load(snapshot)
        except CalicoError:
            self._metrics.bird_failures.inc()
            # What BIRD runs on may be neither the file nor the text.
            self._force, self._loaded = True, None
            raise
        self._loaded = snapshot

    def _is_behind(self) -> bool:
        """Whether BIRD runs on a configuration that is older than the file."""
        reconfigured = self._reconfigured()
        return reconfigured is not None and reconfigured < self._written()

    def _load(self, snapshot: Snapshot) -> None:
        rendered = render(
            snapshot, self._node, router_id=self._router_id, matches=selects, secret=self._secrets
        )
        self._metrics.bird_renders.inc()
        self._tell(rendered.problems)
        before = self._reconfigured()
        outcome = load(rendered.text, self._run_dir, self._client, force=self._force and self._is_behind())
        self._force = False
        if outcome is Outcome.LOADED:
            self._await_move(before)
            self._metrics.bird_loaded.set(time.time())
        if outcome is not Outcome.UNCHANGED:
            self._log.info("configuration of BIRD", outcome=outcome.value, sessions=len(rendered.plan.sessions))

    def _tell(self, problems: tuple[str, ...]) -> None:
        self._metrics.bird_problems.set(len(problems))
        for problem in problems:
            if problem not in self._problems:
                self._log.warning("left out of BIRD's configuration", problem=problem)
        self._problems = problems

    def _reconfigured(self) -> datetime | None:
        """When BIRD last took a configuration; None when it does not run or does not say."""
        try:
            return datetime.fromisoformat(self._client.status().last_reconfiguration)
        except (RoutingError, ValueError):
            return None

    def _written(self) -> datetime:
        try:
            return datetime.fromtimestamp((self._run_dir / CONF_NAME).stat().st_mtime)
        except OSError:
            return datetime.min

    def _await_move(self, before: datetime | None) -> None:
        """BIRD answers `configure` before it has carried it out."""
        until = time.monotonic() + _MOVED_SECONDS
        while before is not None and self._reconfigured() == before:
            if time.monotonic() > until:
                raise RoutingError("BIRD took the configuration, but its last reconfiguration did not move")
            self._sleep(0.05)

    def _look(self) -> None:
        try:
            protocols = self._client.protocols()
        except RoutingError:
            protocols = ()
        states = Counter(one.info.split(" ")[0] or one.state for one in protocols if one.kind == "BGP")
        self._metrics.bgp_peers.clear()
        for state, number in states.items():
            self._metrics.bgp_peers.labels(state).set(number)
