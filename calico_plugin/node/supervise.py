"""The tree of s6 processes that keeps a host's parts running, seen from calico-node, which is its parent.

s6-svscan is our child, s6-supervise watches each part and starts it again at most once a second. If s6-svscan dies, the
rest goes on; `revive` ends that rest in order and starts all again. The tree survives a kill -9 of calico-node on
purpose: traffic and BGP go on, and the next start ends it in order first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterable, Mapping

import structlog

from calico_plugin.errors import RoutingError
from calico_plugin.node import leftovers
from calico_plugin.node.leftovers import Process
from calico_plugin.node.services import BIRD, Service, write
from calico_plugin.routing.apply import SOCKET_NAME
from calico_plugin.routing.birdc import BirdClient

log: Any = structlog.get_logger(part="supervise")

SCAN_NAME = "s6"
_COMMAND_SECONDS = 5.0
_BIRD_SECONDS = 2.0
_STOP_SECONDS = 7.0


def scan_dir(run_dir: Path) -> Path:
    return run_dir / SCAN_NAME


def _make_scan_dir(run_dir: Path, lib_dir: Path) -> None:
    """A folder of scripts that can be run: Debian mounts /run with `noexec`, so there it is a link elsewhere."""
    scan = scan_dir(run_dir)
    if scan.exists():
        return
    if not os.statvfs(run_dir).f_flag & os.ST_NOEXEC:
        scan.mkdir()
        return
    place = lib_dir / SCAN_NAME
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    scan.unlink(missing_ok=True)  # a link whose folder has gone
    scan.symlink_to(place)


def _remove_scan_dir(run_dir: Path) -> None:
    scan = scan_dir(run_dir)
    shutil.rmtree(scan.resolve(), ignore_errors=True)
    if scan.is_symlink():
        scan.unlink()


class Tree:
    """The running parts. `environment` is what they get; `log_dir` None: no files; `forward`: also to our stdout.

    `lib_dir` keeps the scripts where the run directory forbids to run any.
    """

    def __init__(
        self, run_dir: Path, environment: Mapping[str, str], log_dir: Path | None, forward: bool, lib_dir: Path
    ) -> None:
        self.run_dir, self.log_dir, self.forward, self.lib_dir = run_dir, log_dir, forward, lib_dir
        self.environment = {**environment, **leftovers.mark(run_dir)}
        self.services: list[Service] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, services: Iterable[Service]) -> None:
        """Start parts, and s6-svscan with the first ones."""
        _make_scan_dir(self.run_dir, self.lib_dir)
        for service in services:
            write(service, scan_dir(self.run_dir), self.log_dir, self.forward)
            self.services.append(service)
        if self.process is None:
            self._spawn()
        else:
            _s6("s6-svscanctl", "-a", str(scan_dir(self.run_dir)))

    @property
    def pid(self) -> int | None:
        """Process id of s6-svscan."""
        return self.process.pid if self.process else None

    def died(self) -> bool:
        """Whether s6-svscan has ended without being told to."""
        return self.process is not None and self.process.poll() is not None

    def revive(self) -> None:
        """Start everything again after the death of s6-svscan."""
        log.error("s6-svscan has died; all parts are started again")
        self.process = None
        stop(self.run_dir)
        services, self.services = self.services, []
        self.start(services)

    def stop(self) -> None:
        """End all parts so that traffic goes on; see `stop`."""
        stop(self.run_dir)
        if self.process is not None:
            self.process.wait()
            self.process = None

    def _spawn(self) -> None:
        folder = scan_dir(self.run_dir)
        self.process = subprocess.Popen(
            ["s6-svscan", str(folder)], env=self.environment, stdin=subprocess.DEVNULL, start_new_session=True
        )


def stop(run_dir: Path, graceful: bool = True) -> int:
    """End the tree of a run directory, whoever started it; how many processes there were.

    BIRD goes first: with `graceful`, its neighbours keep forwarding to us until it is back or their timer ends; a
    SIGTERM would make them withdraw our routes at once. Kernel routes stay in any case.
    """
    present = leftovers.find(run_dir)
    if present:
        _end_bird(run_dir, present, graceful)
        if any(process.program == "s6-svscan" for process in present):
            _s6("s6-svscanctl", "-t", str(scan_dir(run_dir)))
            leftovers.wait(lambda: not any(process.alive() for process in present), _STOP_SECONDS)
        _end_rest(run_dir)
    _remove_scan_dir(run_dir)
    return len(present)


def withdraw(run_dir: Path) -> None:
    """End BIRD so that neighbours forget our routes at once: this host goes for good."""
    present = leftovers.find(run_dir)
    _end_bird(run_dir, present, graceful=False)


def _end_bird(run_dir: Path, present: list[Process], graceful: bool) -> None:
    birds = [process for process in present if process.program == BIRD]
    if not birds:
        return
    # Told first, or s6 would start it again.
    _s6("s6-svc", "-O", str(scan_dir(run_dir) / BIRD))
    client = BirdClient(run_dir / SOCKET_NAME)
    try:
        (client.graceful_restart if graceful else client.down)()
    except RoutingError as error:
        log.warning("BIRD cannot be asked to end", reason=str(error))
        # Neighbours take a killed BIRD for one that will be back.
        leftovers.end(birds, 0.0)
    leftovers.wait(lambda: not any(bird.alive() for bird in birds), _BIRD_SECONDS)


def _end_rest(run_dir: Path) -> None:
    """What is left when a part of s6 itself was killed: supervisors first, so that nothing is started again."""
    left = leftovers.find(run_dir)
    leftovers.end([process for process in left if process.program in ("s6-svscan", "s6-supervise")], 1.0)
    leftovers.end(leftovers.find(run_dir), _BIRD_SECONDS)


def _s6(*words: str) -> None:
    """A command to s6; it fails when the one it speaks to has gone, which is no error here."""
    try:
        subprocess.run(words, capture_output=True, timeout=_COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        log.warning("s6 does not answer", command=" ".join(words))


def state(run_dir: Path, name: str) -> str:
    """What s6 says of a part, for messages: `up (pid 12) 3 seconds`, or why not."""
    folder = scan_dir(run_dir) / name
    if not os.path.isdir(folder):
        return "not started"
    try:
        done = subprocess.run(
            ["s6-svstat", str(folder)], capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return "s6 does not answer"
    return (done.stdout or done.stderr).strip()
