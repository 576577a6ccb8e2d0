"""Keeps BIRD's configuration in step with the cluster: rendered, judged by BIRD, loaded, and seen to be loaded.

Requests are collected for a moment, since a start or a mesh change brings many at once. A resource that BIRD refuses
is left out and named (log, metric, `node status`); the others stand. What cannot be isolated is told once and tried
again with growing pauses, and the configuration that BIRD runs on stays as it is meanwhile.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Mapping

import structlog

from calico_plugin.agent.worker import Worker
from calico_plugin.errors import CalicoError, RoutingError
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.problems import BIRD, Problems
from calico_plugin.policy.selector import SelectorError, parse
from calico_plugin.routing.apply import SOCKET_NAME, Outcome, Refused, load, runs_another
from calico_plugin.routing.bird import Rendered, render
from calico_plugin.routing.birdc import BirdClient
from calico_plugin.routing.isolate import load_without_the_bad
from calico_plugin.routing.sessions import Session

# Changes of these kinds, and of the own host's affinities, can change the configuration.
KINDS = ("Node", "BGPConfiguration", "BGPPeer", "BGPFilter", "IPPool")
DEBOUNCE = 0.1
_TURN = 2.0
# Turns between two looks at the sessions.
_LOOK_TURNS = 5


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether a node selector matches. Raises ValueError, as the renderer expects of what makes no sense."""
    try:
        return parse(selector).match(labels)
    except SelectorError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Secrets:
    """Secrets as files `<directory>/<name>/<key>`, as mounts of Kubernetes and Docker lay them.

    What was asked for last is remembered, so that a file which comes or changes later is noticed.
    """

    directory: Path
    _asked: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def __call__(self, name: str, key: str) -> str | None:
        self._asked[name, key] = text = self._read(name, key)
        return text

    def changed(self) -> bool:
        """Whether an answer would be another one now."""
        return any(self._read(*asked) != text for asked, text in self._asked.items())

    def _read(self, name: str, key: str) -> str | None:
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
        self._problems: tuple[str, ...] | None = None
        self._text = ""
        self._turns = 0
        self._sessions: Mapping[str, Session] = {}
        self._status = Problems(run_dir)
        self._log = structlog.get_logger(part="bird")
        self.worker = Worker("bird", self._step, every=_TURN)

    def submit(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.worker.wake()

    def _step(self) -> None:
        if self._snapshot is not None and self._snapshot is not self._loaded:
            self._sleep(DEBOUNCE)
            self._try(self._snapshot)
        elif self._loaded is not None and runs_another(self._text, self._client):
            # BIRD started while the file was being written, or somebody gave it another one.
            self._try(self._loaded)
        if self._turns % _LOOK_TURNS == 0:
            self._look()
            if self._secrets.changed() and self._loaded is not None:
                self._try(self._loaded)
        self._turns += 1

    def _try(self, snapshot: Snapshot) -> None:
        try:
            self._load(snapshot)
        except CalicoError as error:
            self._metrics.bird_failures.inc()
            if isinstance(error, Refused):
                self._metrics.bird_refused.set(1)
                self._tell((f"BIRD refuses the configuration and runs on the last good one: {error.why}",))
            self._loaded = None
            raise
        self._loaded = snapshot

    def _load(self, snapshot: Snapshot) -> None:
        rendered, outcome = load_without_the_bad(
            lambda without: self._render(snapshot, without),
            lambda text: load(text, self._run_dir, self._client),
        )
        self._text = rendered.text
        self._sessions = {one.name: one for one in rendered.sessions}
        self._metrics.bird_refused.set(0)
        self._tell(rendered.problems)
        if outcome is Outcome.LOADED:
            self._metrics.bird_loaded.set(time.time())
        if outcome is not Outcome.UNCHANGED:
            self._log.info("configuration of BIRD", outcome=outcome.value, sessions=len(rendered.sessions))

    def _render(self, snapshot: Snapshot, without: Mapping[str, str]) -> Rendered:
        self._metrics.bird_renders.inc()
        return render(
            snapshot,
            self._node,
            router_id=self._router_id,
            matches=selects,
            secret=self._secrets,
            without=without,
        )

    def _tell(self, problems: tuple[str, ...]) -> None:
        if problems == self._problems:
            return
        self._metrics.bird_problems.set(len(problems))
        self._metrics.bird_left_out.clear()
        for problem in problems:
            self._metrics.bird_left_out.labels(problem.partition(": ")[0]).set(1)
            if problem not in (self._problems or ()):
                self._log.warning("left out of BIRD's configuration", problem=problem)
        self._problems = problems
        self._status.tell(BIRD, problems)

    def _look(self) -> None:
        try:
            protocols = self._client.protocols()
        except RoutingError:
            protocols = ()
        sessions = [one for one in protocols if one.kind == "BGP"]
        states = Counter(one.info.split(" ")[0] or one.state for one in sessions)
        self._metrics.bgp_peers.clear()
        for state, number in states.items():
            self._metrics.bgp_peers.labels(state).set(number)
        self._metrics.bgp_peer_up.clear()
        for one in sessions:
            if (known := self._sessions.get(one.name)) is not None:
                peer = known.peer if known.peer_port is None else _with_port(known.peer, known.peer_port)
                self._metrics.bgp_peer_up.labels(peer, known.peer_type).set(one.established)
        self._metrics.bird_routes.clear()
        for one in protocols:
            for direction, number in one.routes().items():
                self._metrics.bird_routes.labels(one.name, direction).set(number)


def _with_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
