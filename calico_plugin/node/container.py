"""calico-node as a container of this host's Docker: what `calicoctl node run --node-image` runs (node-and-cli 4.5).

Docker is asked by its own client, so that what is shown is what is run, and can be typed again.
"""

from __future__ import annotations

import os
import selectors
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

from calico_plugin.config import DatastoreSettings
from calico_plugin.errors import CalicoError
from calico_plugin.node.detached import State
from calico_plugin.node.services import STARTED

NAME = "calico-node"
_CERTS, _SECRETS = "/etc/calico/certs", "/etc/calico/secrets"
# Paths of the host mean nothing inside, where the defaults are right, nor those of inside on the host.
PATHS = frozenset(
    "CALICO_RUN_DIR CALICO_LIB_DIR CALICO_LOG_DIR CALICO_PLUGIN_DIR CALICO_NODENAME_FILE CALICO_HOST_PLUGIN_DIR "
    "CALICO_SECRETS_DIR CALICO_MANAGED_PLUGIN DOCKER_HOST HOSTNAME".split()
)
_SECRET = "ETCD_PASSWORD"
_DOCKER_SECONDS = 60.0
_PULL_SECONDS = 900.0


class ContainerError(CalicoError):
    """Docker did not do what it was asked for; the text has its words."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start. `mounts` are pairs of paths, on the host and inside; `foreground`: for an init system."""

    image: str
    environment: Mapping[str, str]
    mounts: tuple[tuple[str, str], ...]
    foreground: bool = False

    def command(self) -> list[str]:
        """`docker run …`. The password is named only: Docker's client takes it from its own environment."""
        words = ["docker", "run", "--net=host", "--privileged", f"--name={NAME}"]
        words += ["--rm"] if self.foreground else ["-d", "--restart=always"]
        for name, value in sorted(self.environment.items()):
            words += ["-e", name if name == _SECRET else f"{name}={value}"]
        for outside, inside in self.mounts:
            words += ["-v", f"{outside}:{inside}"]
        return [*words, self.image]

    def line(self) -> str:
        """The command as one types it."""
        return shlex.join(self.command())


def plan(
    image: str,
    environ: Mapping[str, str],
    known: Sequence[str],
    datastore: DatastoreSettings,
    log_dir: str,
    foreground: bool,
    secrets_dir: str = "",
) -> Plan:
    """`environ`: the settings of calico-node, `known`: those names of it that mean something. `secrets_dir` holds the
    passwords of BGP sessions; "": there are none.
    """
    environment = {
        name: environ[name]
        for name in known
        if environ.get(name) and name not in PATHS and not name.startswith(("ETCD_", "CALICO_ETCD_", "DATASTORE_"))
    }
    environment.setdefault("CALICO_NETWORKING_BACKEND", "bird")
    environment.setdefault("CALICO_LIBNETWORK_ENABLED", "true")
    environment["CALICO_MANAGE_CNI"] = "false"
    if listen := environ.get("CALICO_ETCD_LISTEN"):
        environment["CALICO_ETCD_LISTEN"] = listen
    # Empty counts as unset: then calico-node uses 127.0.0.1, and starts an etcd there when none answers.
    environment["ETCD_ENDPOINTS"] = "" if datastore.is_default else ",".join(datastore.endpoints)
    mounts = [
        (log_dir, "/var/log/calico"),
        *((path, path) for path in ("/var/run/calico", "/var/lib/calico", "/lib/modules", "/run")),
    ]
    if environment["CALICO_LIBNETWORK_ENABLED"].lower() != "false":
        mounts.append(("/run/docker/plugins", "/run/docker/plugins"))
    mounts.append(("/var/run/docker.sock", "/var/run/docker.sock"))
    if secrets_dir:
        mounts.append((secrets_dir, _SECRETS))
    _add_credentials(environment, mounts, datastore)
    return Plan(image, environment, tuple(mounts), foreground)


def _add_credentials(environment: dict[str, str], mounts: list[tuple[str, str]], datastore: DatastoreSettings) -> None:
    """Certificates are mounted where their variables say; a key and its certificate come together."""
    files = [("ETCD_CA_CERT_FILE", datastore.ca_cert_file, "ca_cert.crt")]
    if datastore.key_file and datastore.cert_file:
        files += [("ETCD_KEY_FILE", datastore.key_file, "key.pem"), ("ETCD_CERT_FILE", datastore.cert_file, "cert.crt")]
    for variable, path, name in files:
        if path:
            environment[variable] = f"{_CERTS}/{name}"
            mounts.append((str(Path(path).resolve()), f"{_CERTS}/{name}"))
    if datastore.username:
        environment.update(ETCD_USERNAME=datastore.username, ETCD_PASSWORD=datastore.password)


def cluster_store() -> bool:
    """Whether this host's Docker (20.10 or older) has a cluster store; False when it does not say.

    The driver finds that out by itself only where it can see the process of dockerd, which a container cannot.
    """
    try:
        return _docker("info", "--format", "{{.ClusterStore}}", seconds=5.0).stdout.strip() != ""
    except ContainerError:
        return False


def exists() -> bool:
    """Whether there is a container of our name, running or not. Raises ContainerError."""
    listed = _docker("ps", "-aq", "--filter", f"name=^/{NAME}$").stdout
    return bool(listed.strip())


def remove() -> None:
    """End and remove it; none there is no error. Raises ContainerError."""
    if exists():
        _docker("stop", NAME)  # in order first: traffic goes on, and neighbours wait for us
        _docker("rm", "-f", NAME)


def start(what: Plan) -> None:
    """`docker run -d`, which pulls the image where it is missing. Raises ContainerError."""
    secret = {_SECRET: what.environment[_SECRET]} if _SECRET in what.environment else {}
    _docker(*what.command()[1:], seconds=_PULL_SECONDS, environment={**os.environ, **secret})


def become(what: Plan) -> None:
    """Turn into `docker run --rm` in the foreground; does not return."""
    words = what.command()
    os.execvpe(words[0], words, {**os.environ, _SECRET: what.environment.get(_SECRET, "")})


def follow(seconds: float) -> tuple[State, list[str]]:
    """Read the container's log until the start line, its end or the time; what was read.

    Raises ContainerError when there is nothing to follow.
    """
    over = time.monotonic() + seconds
    lines: list[str] = []
    with subprocess.Popen(["docker", "logs", "-f", NAME], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        try:
            state = _read(process.stdout.fileno(), lines, over)
        finally:
            process.kill()
    if state is State.EXITED and not lines:
        raise ContainerError(f"`docker logs -f {NAME}` failed; look at `docker ps -a`")
    return state, lines


def _read(descriptor: int, lines: list[str], over: float) -> State:
    rest = b""
    with selectors.DefaultSelector() as ready:
        ready.register(descriptor, selectors.EVENT_READ)
        while (left := over - time.monotonic()) > 0:
            if not ready.select(left):
                break
            data = os.read(descriptor, 65536)
            *whole, rest = (rest + data).split(b"\n")
            lines += [line.decode(errors="replace").rstrip("\r") for line in whole]
            if STARTED in lines:
                return State.STARTED
            if not data:
                return State.EXITED
    return State.STARTING


def _docker(
    *words: str, seconds: float = _DOCKER_SECONDS, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            ["docker", *words], capture_output=True, text=True, timeout=seconds, check=False, env=environment
        )
    except FileNotFoundError:
        raise ContainerError("docker is not installed on this host (or not on the PATH)") from None
    except subprocess.TimeoutExpired:
        raise ContainerError(f"`docker {words[0]}` did not end within {seconds:g} s") from None
    if done.returncode != 0:
        raise ContainerError(f"`docker {words[0]}` failed: {(done.stderr or done.stdout).strip()}")
    return done
