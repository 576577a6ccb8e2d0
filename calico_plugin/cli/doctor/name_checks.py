"""Checks of names across hosts: that queries can be answered here, and that Docker passes any on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterable

from calico_plugin.cli.doctor import probes
from calico_plugin.cli.doctor.context import Context
from calico_plugin.cli.doctor.finding import Finding, Level
from calico_plugin.errors import DockerError
from calico_plugin.observe.problems import NAMES, Problems

# From this release on Docker asks no server where the host has none.
_NO_SERVER_NO_QUERY = 28
_RESOLV_CONF = Path("/etc/resolv.conf")


def names(context: Context) -> Iterable[Finding]:
    """Containers find those of other hosts by name."""
    if context.settings.names == "false":
        yield Finding("names", Level.OK, "switched off (CALICO_LIBNETWORK_DNS=false)")
        return
    refused = Problems(context.settings.run_dir).read().get(NAMES, [])
    for sentence in refused:
        meaning = "Containers find those of the same host only; names of the world are found as ever."
        command = "the kernel needs nfnetlink_queue and nft_queue (or xt_NFQUEUE), calico-agent CAP_NET_RAW"
        yield Finding("names", Level.WARN, sentence, meaning, command)
    mute = _is_mute(context)
    if mute:
        meaning = "Docker 28 and newer then asks nobody for names it does not know, such as those of other hosts."
        command = "put a nameserver into /etc/resolv.conf (any: 127.0.0.1 will do), then restart the containers"
        yield Finding("names", Level.WARN, f"{_RESOLV_CONF} names no DNS server", meaning, command)
    if not refused and not mute:
        count = int(context.metrics.get("calico_names_endpoints", 0.0))
        yield Finding("names", Level.OK, f"{count} endpoints of the cluster are known by name")


def _is_mute(context: Context) -> bool:
    try:
        version, servers = context.docker("/version"), probes.nameservers(_RESOLV_CONF)
    except DockerError:
        return False
    number = re.match(r"\d+", str(version.get("Version", "")))
    return servers == [] and number is not None and int(number[0]) >= _NO_SERVER_NO_QUERY
