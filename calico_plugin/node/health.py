"""`calico-node -bird-ready -felix-ready …`: the check that containers and supervisors run (node-and-cli 5.1).

BIRD is ready when nothing is to be waited for: no sessions, or all of them up and no recovery going on. After
`threshold` seconds one session is enough: a neighbour that is dead for long must not take this node out too.
"""

from __future__ import annotations

import time
from typing import Callable, Iterable, Sequence

from calico_plugin.config import Settings
from calico_plugin.errors import RoutingError
from calico_plugin.model import duration
from calico_plugin.node import ready, report
from calico_plugin.node.report import Row
from calico_plugin.routing.apply import SOCKET_NAME
from calico_plugin.routing.birdc import BirdClient

THRESHOLD = 30.0
CHECKS = ("felix-live", "felix-ready", "bird-live", "bird-ready", "bird6-live", "bird6-ready")
_THRESHOLD_FLAG = "threshold-time"


def parse(words: Sequence[str]) -> tuple[tuple[str, ...], float] | None:
    """Checks and threshold of a command line; None when it is none of ours. Raises ValueError for a bad time."""
    wanted, threshold = [], THRESHOLD
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in (*CHECKS, _THRESHOLD_FLAG):
            return None
        if name == _THRESHOLD_FLAG:
            threshold = duration.seconds(value)
        else:
            wanted.append(name)
    return (tuple(wanted), threshold) if wanted else None


def failures(wanted: Iterable[str], threshold: float, settings: Settings) -> list[str]:
    """One line for each check that fails."""
    found = []
    for name in dict.fromkeys(one.replace("bird6", "bird") for one in wanted):
        reason = _checks(settings, threshold)[name]()
        if reason is not None:
            found.append(f"{name}: {reason}")
    return found


def _checks(settings: Settings, threshold: float) -> dict[str, Callable[[], str | None]]:
    host, port = settings.health_host, settings.health_port
    return {
        "felix-live": lambda: ready.agent(host, port, "/liveness"),
        "felix-ready": lambda: ready.agent(host, port),
        "bird-live": lambda: ready.bird(settings.run_dir),
        "bird-ready": lambda: bird_ready(settings, threshold),
    }


def bird_ready(settings: Settings, threshold: float) -> str | None:
    """See the module's text; with another backend than BIRD there is nothing to check."""
    if settings.node.backend != "bird":
        return None
    client = BirdClient(settings.run_dir / SOCKET_NAME)
    try:
        status = client.status()
        rows = report.rows(client.protocols())
    except RoutingError as error:
        return str(error)
    return judge(rows, status.graceful_restart, _age(settings) < threshold)


def judge(rows: Sequence[Row], recovering: bool, young: bool) -> str | None:
    """The rule itself."""
    down = [row.peer for row in rows if not row.established]
    if young and recovering:
        return "BIRD's graceful restart is in progress"
    if down and (young or len(down) == len(rows)):
        return f"BGP not established with {','.join(down)}"
    return None


def _age(settings: Settings) -> float:
    """Seconds since start-up was done, which touches the nodename file."""
    try:
        return time.time() - settings.nodename_file.stat().st_mtime
    except OSError:
        return 0.0
