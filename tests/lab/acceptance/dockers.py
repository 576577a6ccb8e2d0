"""The Dockers of the acceptance tests, and what their tests ask of a host."""
from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab.connectivity import Container
from tests.lab.lab import Lab
from tests.lab.releases import RELEASES
from tests.lab.spec import DockerRelease

STORE = "20.10 with store"
CREATE = ("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam")


def mixed(label: str) -> tuple[DockerRelease, ...]:
    """What host1 and host2 run: "26.1", or "20.10 and 28.5"."""
    return tuple(RELEASES[one] for one in (label.split(" and ") * 2)[:2])


def major(lab: Lab, host: str) -> int:
    """What a host runs: 20, 26 or 28."""
    return int(lab.spec.release_of(host).label.split(".")[0])


def since(lab: Lab, number: int) -> None:
    """Skip a test where a host's Docker is older."""
    if any(major(lab, host) < number for host in lab.hosts):
        pytest.skip(f"from Docker {number} on")


def networks(lab: Lab, host: str) -> list[str]:
    """Names of the networks of our driver."""
    return lab[host].run("docker", "network", "ls", "-f", "driver=calico", "--format", "{{.Name}}").stdout.split()


def network_of(lab: Lab, host: str, name: str) -> dict[str, Any]:
    """docker network inspect"""
    found: list[dict[str, Any]] = json.loads(lab[host].run("docker", "network", "inspect", name).stdout)
    return found[0]


def ends(one: Container) -> dict[str, dict[str, Any]]:
    """A container's networks as `docker inspect` tells them: name -> IPAddress, GlobalIPv6Address, Gateway, ..."""
    found: dict[str, dict[str, Any]] = json.loads(one.inspect("{{json .NetworkSettings.Networks}}"))
    return found


def address(one: Container, network: str) -> str:
    """Its IPv4 address in one of its networks."""
    found: str = ends(one)[network]["IPAddress"]
    return found


def refused(lab: Lab, host: str, *words: str, seconds: float = 60) -> str:
    """Run what must fail; the one line that Docker shows for it."""
    answer = lab[host].run(*words, check=False, seconds=seconds)
    assert answer.returncode not in (0, 124, 137), f"{words} was not refused: {answer.returncode} {answer.stdout}"
    return answer.stdout
