"""Collects what one needs to understand a host from afar: `calicoctl node diags` (node-and-cli 4.6).

A command that fails or is not installed is noted and passed over. Passwords of BGP sessions are masked.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Callable

from calico_plugin.config import Settings
from calico_plugin.errors import RoutingError
from calico_plugin.routing.apply import CONF_NAME, SOCKET_NAME
from calico_plugin.routing.birdc import BirdClient

COMMANDS = {
    "date": "date",
    "hostname": "hostname",
    "netstat": "ss -s -tuanp",
    "ipv4_route": "ip -4 -d route show table all",
    "ipv6_route": "ip -6 -d route show table all",
    "ipv4_addr": "ip -4 addr",
    "ipv6_addr": "ip -6 addr",
    "links": "ip -d link",
    "ipv4_tables": "iptables-save",
    "ipv6_tables": "ip6tables-save",
    "nft_ruleset": "nft list ruleset",
    "ipsets": "ipset list",
    "processes": "ps axf -o pid,lstart,args",
    "docker_networks": "docker network ls --no-trunc",
    "docker_containers": "docker ps -a --no-trunc",
    "docker_logs_calico_node": "docker logs --timestamps --tail 20000 calico-node",
    "journalctl_calico_node": "journalctl -u calico-node.service -u calico-node-container.service --no-pager",
}
_COMMAND_SECONDS = 20.0
_PASSWORD = re.compile(r'password "[^"]*"')


def collect(settings: Settings, say: Callable[[str], None]) -> Path:
    """Make the archive in the folder for temporary files, readable by root only; its path."""
    with tempfile.TemporaryDirectory(prefix="calico-") as temporary:
        folder = Path(temporary) / "diagnostics"
        folder.mkdir()
        for name, command in COMMANDS.items():
            _run(folder / name, command, say)
        _bird(folder, settings, say)
        _logs(folder, settings, say)
        archive = Path(tempfile.gettempdir()) / time.strftime("diags-%Y%m%d_%H%M%S.tar.gz")
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, "diagnostics")
        archive.chmod(0o600)
    return archive


def _run(path: Path, command: str, say: Callable[[str], None]) -> None:
    say(f"Collecting {path.name}")
    try:
        done = subprocess.run(
            command.split(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        say(f"  {command.split()[0]} is not installed")
    except subprocess.TimeoutExpired:
        say(f"  {command} did not end within {_COMMAND_SECONDS:g} s")
    else:
        path.write_bytes(done.stdout)
        if done.returncode:
            say(f"  {command} failed with status {done.returncode}")


def _bird(folder: Path, settings: Settings, say: Callable[[str], None]) -> None:
    say("Collecting bird")
    client = BirdClient(settings.run_dir / SOCKET_NAME)
    for name, command in (("bird_protocols", "show protocols all"), ("bird_routes", "show route all")):
        try:
            (folder / name).write_text("\n".join(line.text for line in client.command(command)) + "\n")
        except RoutingError as error:
            say(f"  {error}")
    try:
        text = (settings.run_dir / CONF_NAME).read_text()
    except OSError:
        return
    (folder / CONF_NAME).write_text(_PASSWORD.sub('password "********"', text))


def _logs(folder: Path, settings: Settings, say: Callable[[str], None]) -> None:
    say("Collecting logs")
    try:
        shutil.copytree(settings.log_dir, folder / "logs", ignore=shutil.ignore_patterns("lock", "state"))
    except (OSError, shutil.Error) as error:
        say(f"  {error}")
