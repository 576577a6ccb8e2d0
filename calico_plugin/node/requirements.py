"""What must be on a host before its parts can run, each with the Debian package that brings it."""

from __future__ import annotations

import ctypes
import os
import shutil

from calico_plugin.config import Settings
from calico_plugin.errors import CalicoError

_S6 = ("s6-svscan", "s6-supervise", "s6-log", "s6-svc", "s6-svscanctl")


class Missing(CalicoError):
    """Something that this host lacks."""


def need_root() -> None:
    """Raises Missing for anyone else."""
    if os.geteuid() != 0:
        raise Missing("calico-node needs root: it makes network links, routes and rules; run it with sudo -E")


def check_programs(settings: Settings, embedded_etcd: bool) -> None:
    """Raises Missing that names everything which is not there, and the command that installs it."""
    wanted = {program: "s6" for program in _S6}
    if settings.node.backend == "bird":
        wanted["bird"] = "bird2"
    if embedded_etcd:
        wanted["etcd"] = "etcd-server"
    if settings.node.run_agent:
        wanted["iptables"] = "iptables"
    missing = {program: package for program, package in wanted.items() if shutil.which(program) is None}
    if settings.node.run_agent and not _loads("libnftables.so.1"):
        missing["libnftables.so.1"] = "libnftables1"
    if missing:
        names = ", ".join(f"{program} (Debian package {package})" for program, package in missing.items())
        packages = " ".join(sorted(set(missing.values())))
        raise Missing(f"not installed: {names}. Install with: apt-get install {packages}")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
