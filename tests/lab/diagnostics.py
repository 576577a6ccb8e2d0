"""All there is to know about a lab, written to its log folder when something failed."""
from __future__ import annotations

import itertools
import re
from pathlib import Path

from tests.lab.lab import Lab

LOOK = {
    "processes": "ps -ef",
    "links": "ip -details address",
    "routes": "ip route show table all; ip -6 route; ip rule",
    "neighbours": "ip neigh",
    "nft": "nft list ruleset",
    "iptables": "iptables-save; iptables-legacy-save",
    "docker": "timeout 10 docker ps -a --no-trunc; timeout 10 docker network ls; timeout 10 docker info",
    "calico-run": "find /var/run/calico /run/docker/plugins -ls; cat /var/run/calico/bird.conf",
    "bird": "for what in 'protocols all' 'route all'; do birdc -s /var/run/calico/bird.ctl show $what; done",
    "status": "calicoctl node status; calicoctl ipam check; calicoctl get wep -A -o yaml",
}
# A line in a log of ours that means a bug, whether or not a test noticed anything.
BUG_MARKERS = re.compile(r"Traceback \(most recent call last\)|\bBUG\b|AssertionError|unhandled exception")


def dump(lab: Lab, why: str) -> Path:
    """Write everything down in a new folder, and return it."""
    slug = re.sub(r"[^\w.-]+", "-", why).strip("-")[:80]
    place = next(path for number in itertools.count(1)
                 if not (path := lab.logs / f"dump-{number}-{slug}").exists())
    place.mkdir(parents=True)
    for machine in lab.machines.values():
        if machine.running():
            for name, script in LOOK.items():
                text = machine.shell(script, seconds=40, check=False, env={"ETCD_ENDPOINTS": lab.spec.etcd_url})
                (place / f"{machine.name}-{name}.txt").write_text(text)
    script = "ETCDCTL_API=3 etcdctl --command-timeout=5s get '' --prefix; ETCDCTL_API=2 etcdctl ls -r"
    (place / "etcd.txt").write_text(lab.etcd.machine.shell(script, check=False))
    return place


def bug_lines(lab: Lab) -> list[str]:
    """Lines in our own parts' logs that mean a bug."""
    found = []
    for path in sorted(lab.logs.glob("*/calico/**/*")):
        if path.is_file():
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if BUG_MARKERS.search(line):
                    found.append(f"{path.relative_to(lab.logs)}:{number}: {line[:200]}")
    return found
