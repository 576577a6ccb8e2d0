"""calico-node: start-up steps, then driver, agent and BIRD under s6, in the foreground until SIGTERM.

It prints `Calico node started successfully` once every part has answered at its own door; scripts wait for this line.
Exit status: 0 after SIGTERM or SIGINT, 1 when it could not start (the reason is on standard error).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Mapping

import structlog

from calico_plugin import __version__
from calico_plugin.config import NONE, Settings
from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError, DatastoreError
from calico_plugin.model.names import BIRD_ROUTE_PROTOCOL
from calico_plugin.node import docker_life, embedded, health, nodestatus, notify, ready, startup, supervise, tunnels
from calico_plugin.node.interfaces import read_interfaces, source_towards
from calico_plugin.node.lock import Lock
from calico_plugin.node.recheck import AddressWatch
from calico_plugin.node.requirements import check_programs, need_root
from calico_plugin.node.reset import remove_routes
from calico_plugin.node.services import DRIVER, FAILED, STARTED, parts
from calico_plugin.node.startup import HostView
from calico_plugin.node.supervise import Tree
from calico_plugin.observe import log as logging

log: Any = structlog.get_logger(part="node")

# Debian keeps bird and iptables in sbin, which a cron job or a unit may not have on its PATH.
_SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_WATCH_SECONDS = 1.0
_READY_LOOK_SECONDS = 0.1
_ETCD_SECONDS = 20.0
_LOG_TAIL = 15
_HELD_UP_SECONDS = 5.0
USAGE = """Usage: calico-node [--version | --help | CHECK ...]

Runs all parts of Calico for this host's Docker in the foreground: calico-driver, calico-agent and BIRD, and an etcd
when ETCD_ENDPOINTS is not set and nothing answers on 127.0.0.1:2379. Settings come from the environment:
ETCD_ENDPOINTS, NODENAME, IP, AS, CALICO_IPV4POOL_CIDR and more. `calicoctl node run` starts it in the background.

Checks, for a container's HEALTHCHECK (status 0 or 1, reasons on standard output): -felix-live, -felix-ready,
-bird-live, -bird-ready, -threshold-time=30s."""


class Stopped(BaseException):
    """SIGTERM or SIGINT has come; not an Exception, so that nothing on the way takes it for an error."""


class StartFailed(CalicoError):
    """A part did not come up; the text says which, and shows the end of its log."""


def main() -> None:
    if sys.argv[1:] in (["--version"], ["-v"]):
        print(__version__)
        return
    if (status := _health(sys.argv[1:])) is not None:
        raise SystemExit(status)
    if sys.argv[1:]:
        print(USAGE)
        raise SystemExit(0 if sys.argv[1] in ("--help", "-h") else 1)
    raise SystemExit(run(_environment(os.environ)))


def _health(words: list[str]) -> int | None:
    """Exit status of a health check, or None when none was asked for."""
    try:
        asked = health.parse(words)
    except ValueError as error:
        print(f"-threshold-time: {error}", file=sys.stderr)
        return 1
    if asked is None:
        return None
    found = health.failures(*asked, Settings.from_env(os.environ))
    print("\n".join(found) or "ready")
    return 1 if found else 0


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What was given, with the system's folders on the PATH."""
    given = [part for part in environ.get("PATH", "").split(":") if part]
    path = ":".join(dict.fromkeys([*given, *_SYSTEM_PATH]))
    os.environ["PATH"] = path
    return {**environ, "PATH": path}


def run(environ: dict[str, str]) -> int:
    """The whole life of calico-node; its exit status."""
    logging.setup("calico-node")
    try:
        settings = Settings.checked(environ)
        # Docker takes all that a plugin writes to standard error for errors.
        logging.setup("calico-node", settings.log_level, stream=sys.stdout if settings.node.managed else sys.stderr)
        log.info("Early log level set", level=settings.log_level)
        need_root()
        _on_signals()
        startup.make_directories(settings)
        with Lock(settings.run_dir):
            return _locked(settings, environ)
    except Stopped:
        return 0
    except DatastoreError as error:
        return _failed(f"Error accessing the Calico datastore: {error}", _sudo_hint(environ))
    except CalicoError as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename or 'the system'}: {error.strerror}")
    except Exception as error:  # the edge: whatever else happens is a bug of ours
        logging.bug(log, "calico-node ends on an error that nobody expected")
        return _failed(f"internal error, please report it with the log: {type(error).__name__}: {error}")


def _failed(reason: str, hint: str = "") -> int:
    for line in reason.splitlines():
        log.error(line)
    log.warning("Terminating")
    print(f"ERROR: {reason}{hint}\n{FAILED}", file=sys.stderr, flush=True)
    return 1


def _sudo_hint(environ: Mapping[str, str]) -> str:
    if environ.get("SUDO_USER") and not environ.get("ETCD_ENDPOINTS"):
        return " (sudo drops the environment: sudo -E keeps ETCD_ENDPOINTS)"
    return ""


def _on_signals() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        # Once is enough: the way down must not be interrupted by an impatient second signal.
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_IGN)
        raise Stopped

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, stop)


def _locked(settings: Settings, environ: dict[str, str]) -> int:
    if count := supervise.stop(settings.run_dir):
        log.warning(f"Ended {count} processes that an earlier calico-node had left")
    systemd = environ.pop(notify.VARIABLE, "")  # ours alone: the parts have nothing to say there
    tree = _tree(settings, environ)
    kv = _connect(settings)
    keeper = tunnels.Keeper(kv, settings.node_name)
    reporter = nodestatus.Reporter(kv, settings.node_name, settings.run_dir)
    try:
        start(settings, environ, tree)
        print(STARTED, flush=True)
        notify.ready(systemd)
        if not settings.node.managed:
            docker_life.start(settings)
        if settings.node.backend != NONE:
            keeper.start()
        reporter.start()
        watch(tree, _address_watch(settings))
    finally:
        # Nothing may interrupt this, not even on the way of an error.
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_IGN)
        keeper.close()
        reporter.close()
        tree.stop()
        kv.close()
    return 0


def _tree(settings: Settings, environ: dict[str, str]) -> Tree:
    inherited = {**environ, "NODENAME": settings.node_name}
    log_dir = settings.log_dir if settings.node.file_logging else None
    return Tree(settings.run_dir, inherited, log_dir, settings.node.forward_logs, settings.lib_dir)


def start(settings: Settings, environ: dict[str, str], tree: Tree) -> None:
    """All steps up to the parts' answers. Raises CalicoError."""
    host = _look()
    own_etcd = embedded.wanted(settings)
    check_programs(settings, own_etcd)
    services = parts(settings)
    if settings.node.managed:
        # Docker waits nine seconds for the socket, and then throws the plugin out: before all that may take long.
        docker_life.start(settings)
        tree.start([one for one in services if one.name == DRIVER])
    if own_etcd:
        _start_etcd(settings, host, tree)
    startup.report_name(settings, environ)
    if settings.node.managed:
        _prepare_some_time(settings, tree)
    else:
        _prepare(settings, host, wait=settings.node.wait_for_datastore)
    startup.keep_name(settings)
    if settings.node.backend != "bird" and (count := remove_routes(BIRD_ROUTE_PROTOCOL)):
        log.info(f"Removed {count} routes that BIRD had left: this node runs without it now")
    tree.start([one for one in services if one not in tree.services])
    wait_until_ready(settings, tree)


def _prepare_some_time(settings: Settings, tree: Tree) -> None:
    """The steps again and again until they work: a plugin that ends is taken out of service by Docker, for good.

    Meanwhile the driver answers Docker with the reason why nothing works yet.
    """
    pause, told = 1.0, ""
    while True:
        try:
            _prepare(settings, _look(), wait=False)
            return
        except CalicoError as error:
            if str(error) != told:
                log.warning("Start-up is held up, and will be tried again", reason=str(error))
            told = str(error)
        if tree.died():
            tree.revive()
        time.sleep(pause)
        pause = min(pause * 2, _HELD_UP_SECONDS)


def _start_etcd(settings: Settings, host: HostView, tree: Tree) -> None:
    listen = embedded.listen_addresses(settings, host)
    log.info("ETCD_ENDPOINTS is not set and nothing answers on 127.0.0.1:2379: starting an etcd of this host's own")
    for address in listen[1:]:
        log.warning(
            f"That etcd also listens on http://{address}:2379, for the next hosts, without a password: whoever reaches "
            "the port owns the cluster. CALICO_ETCD_LISTEN=127.0.0.1 keeps it to this host"
        )
    embedded.data_dir(settings).mkdir(mode=0o700, parents=True, exist_ok=True)
    tree.start([embedded.service(settings, listen)])
    over = time.monotonic() + _ETCD_SECONDS
    while embedded.wanted(settings):
        if time.monotonic() > over:
            raise StartFailed(_not_up(settings, {"etcd": "nothing answers on 127.0.0.1:2379"}))
        time.sleep(_READY_LOOK_SECONDS)


def _connect(settings: Settings) -> EtcdKV:
    return connect(**asdict(settings.datastore))


def _prepare(settings: Settings, host: HostView, wait: bool) -> None:
    kv = _connect(settings)
    try:
        store = Store(kv)
        startup.wait_for_datastore(store, wait)
        startup.prepare(settings, store, host)
        if settings.node.backend != NONE:
            tunnels.reserve(kv, settings.node_name, Deadline(tunnels.STEP_SECONDS))
    finally:
        kv.close()


def wait_until_ready(settings: Settings, tree: Tree) -> None:
    """Until every part answers. Raises StartFailed after `start_timeout` seconds, naming those that do not."""
    waiting = ready.checks(settings)
    over = time.monotonic() + settings.node.start_timeout
    while waiting:
        reasons = {name: reason for name, check in waiting.items() if (reason := check()) is not None}
        for name in waiting.keys() - reasons.keys():
            log.info(f"{name} is up")
        waiting = {name: waiting[name] for name in reasons}
        if waiting and time.monotonic() > over:
            raise StartFailed(_not_up(settings, reasons))
        if tree.died():
            tree.revive()
        if waiting:
            time.sleep(_READY_LOOK_SECONDS)


def _not_up(settings: Settings, reasons: Mapping[str, str]) -> str:
    lines = []
    for name, reason in sorted(reasons.items()):
        lines.append(f"{name} did not come up: {reason} (s6: {supervise.state(settings.run_dir, name)})")
        lines += [f"  {line}" for line in log_tail(settings.log_dir / name / "current", _LOG_TAIL)]
    return "\n".join(lines)


def log_tail(path: Path, count: int) -> list[str]:
    """The last lines of a log, none when it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def _address_watch(settings: Settings) -> AddressWatch:
    return AddressWatch(settings.node, _look, lambda host: _prepare(settings, host, wait=False))


def _look() -> HostView:
    return HostView(read_interfaces(), source_towards)


def watch(tree: Tree, addresses: AddressWatch) -> None:
    """Keep s6 itself running, and the node's address right; Stopped ends this."""
    while True:
        if tree.died():
            tree.revive()
        addresses.tick()
        if os.getpid() == 1:
            reap_orphans(tree.pid)
        time.sleep(_WATCH_SECONDS)


def reap_orphans(own: int | None) -> None:
    """What process 1 of a container owes to processes whose parent has died; our child `own` is left to its owner."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == own:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)


if __name__ == "__main__":
    main()
