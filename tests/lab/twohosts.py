"""Two Docker hosts without a cluster store: their networks, as each host's Docker tells."""
from __future__ import annotations

import json
import time
from typing import Any, Iterator

from tests.lab import leaks
from tests.lab.lab import Lab
from tests.lab.wait import wait_for

CREATE = ("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam")
# A host under load is no reason to fail; what is promised is less.
PATIENCE = 10.0
SHARED = "/calico/docker/v1/shared-"
NAMES = "/calico/docker/v1/endpoint-names/"
_WHAT = ("Name", "Driver", "Scope", "Internal", "Attachable", "EnableIPv6", "EnableIPv4", "Options", "Labels", "IPAM")


def tidy(pair: Lab) -> Iterator[None]:
    """After each test no Calico network is left on any host, and nothing of it in etcd."""
    yield
    for host in pair.hosts:
        pair.docker(host).remove_all_containers()
    for host in pair.hosts:
        for name in networks(pair, host):
            pair[host].run("docker", "network", "rm", name, check=False)
    wait_for("no network left", lambda: not any(networks(pair, host) for host in pair.hosts), 30, 0.2)
    wait_for("no record left", lambda: not pair.etcd.keys(SHARED), 20, 0.3)
    wait_for("no name left", lambda: not pair.etcd.keys(NAMES), 20, 0.3)
    wait_for("nothing left", lambda: leaks.none(pair), 20, 0.3)


def networks(lab: Lab, host: str) -> list[str]:
    words = ("docker", "network", "ls", "-f", "driver=calico", "--format", "{{.Name}}")
    return sorted(lab[host].run(*words).stdout.split())


def inspect(lab: Lab, host: str, name: str) -> dict[str, Any] | None:
    done = lab[host].run("docker", "network", "inspect", name, check=False)
    found = json.loads(done.stdout[:done.stdout.rindex("]") + 1]) if done.returncode == 0 else []
    if not found:
        return None
    # Releases differ in what they leave out, in the order of families, and write a gateway that is none as :: or ::/0.
    found[0]["IPAM"]["Config"].sort(key=lambda one: ":" in one["Subnet"])
    for one in found[0]["IPAM"]["Config"]:
        one["Gateway"] = one.get("Gateway", "").split("/")[0]
    return {"EnableIPv4": True, **{key: found[0][key] for key in _WHAT if key in found[0]}}


def everywhere(lab: Lab, name: str, seconds: float = PATIENCE) -> float:
    """Wait until both hosts have equal networks of that name; how long that took."""
    began = time.monotonic()

    def equal() -> bool:
        found = [inspect(lab, host, name) for host in lab.hosts]
        return found[0] is not None and found[0] == found[1]

    wait_for(f"{name} on both hosts", equal, seconds, 0.1)
    return time.monotonic() - began


def nowhere(lab: Lab, name: str, seconds: float = PATIENCE) -> float:
    began = time.monotonic()
    wait_for(f"{name} on no host", lambda: not any(inspect(lab, host, name) for host in lab.hosts), seconds, 0.1)
    return time.monotonic() - began
