"""The managed plugin on lab hosts: a registry, and Docker's plugin commands."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Callable

from tests.lab import rootfs
from tests.lab.lab import Lab
from tests.lab.machine import Machine
from tests.lab.wait import wait_for

ALIAS = "calico"
PORT = 5000
INSECURE = "--insecure-registry=172.20.62.0/24"  # the registry speaks plain HTTP
_REGISTRY = """version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /var/lib/docker/registry}}
http: {addr: ":%d"}
"""


def start_registry(machine: Machine) -> None:
    """Debian's docker-registry on a host; it ends with the machine."""
    config = machine.logs / "registry.yml"
    config.write_text(_REGISTRY % PORT)
    machine.spawn("registry.log", "docker-registry", "serve", str(config))
    connect = ("bash", "-c", f"</dev/tcp/127.0.0.1/{PORT}")
    wait_for("the registry", lambda: machine.run(*connect, check=False).returncode == 0, 20)


def publish(machine: Machine, name: str) -> None:
    """Create the plugin from what `make plugin` left, push it, forget it here."""
    machine.run("docker", "plugin", "create", name, str(rootfs.built()), seconds=180)
    machine.run("docker", "plugin", "push", name, seconds=180)
    machine.run("docker", "plugin", "rm", name)


def install(lab: Lab, host: str, name: str, **settings: str) -> float:
    """As a user does; how long it took to be enabled after the download, roughly: all of it."""
    given = {"ETCD_ENDPOINTS": lab.spec.etcd_url, **settings}
    began = time.monotonic()
    lab[host].run("docker", "plugin", "install", "--grant-all-permissions", "--alias", ALIAS, name,
                  *(f"{key}={value}" for key, value in given.items()), seconds=180)
    return time.monotonic() - began


def log(machine: Machine) -> str:
    """What dockerd has written, the plugin's lines among it."""
    return (machine.logs / "dockerd.log").read_text(errors="replace")


def wait_started(machine: Machine, times: int = 1, seconds: float = 60) -> None:
    """Until calico-node in the plugin has started for the `times`-th time."""
    wait_for(f"start {times} of calico-node in the plugin on {machine.name}",
             lambda: log(machine).count('msg="Calico node started successfully"') >= times, seconds, 0.3)


def starts(machine: Machine) -> int:
    """How often calico-node has started so far."""
    return log(machine).count('msg="Calico node started successfully"')


def create_variant(machine: Machine, folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """The plugin with another config.json; the root file system is linked, not copied."""
    made = rootfs.built()
    shutil.copytree(made / "rootfs", folder / "rootfs", symlinks=True, copy_function=os.link)
    config = json.loads((made / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    machine.run("docker", "plugin", "create", name, str(folder), seconds=180)
