"""`calicoctl doctor` on hosts with Docker: well with networks and containers, and it finds what is wrong with them."""
from __future__ import annotations

import json
from typing import Callable

from tests.lab.connectivity import Container
from tests.lab.lab import Lab
from tests.lab.wait import wait_for


def problems(lab: Lab, *only: str) -> list[dict[str, str]]:
    """Warnings and failures on host1."""
    words = [word for name in only for word in ("--only", name)]
    said = lab.node("host1").ctl("doctor", "-o", "json", *words, check=False)
    return [one for one in json.loads(said[said.index("["):]) if one["level"] in ("warn", "fail")]


def test_well_with_containers(lab: Lab, network: Callable[..., str], run: Callable[..., Container]) -> None:
    """Docker, its networks, endpoints, addresses and the MTU of their links are all in order."""
    network("doctor_net")
    for host in lab.hosts:
        run(host, f"doctor-{host}", "doctor_net")
    wait_for("no problem", lambda: problems(lab) == [], 20)
    said = lab.node("host1").ctl("doctor")
    assert "scope global" in said and "1 endpoints on this host, all connected" in said


def test_broken_endpoint(lab: Lab, network: Callable[..., str], run: Callable[..., Container]) -> None:
    """A route that somebody took, while the agent is frozen; an endpoint whose link is gone."""
    network("doctor_net")
    container = run("host1", "doctor-web", "doctor_net")
    address, interface = container.address(), container.interface()
    (agent,) = lab.node("host1").part("agent")
    agent.send(19)
    try:
        lab["host1"].run("ip", "route", "del", f"{address}/32")
        (found,) = problems(lab, "endpoints")
        assert found["level"] == "fail" and address in found["summary"]
        lab["host1"].run("ip", "link", "del", interface)
        (found,) = problems(lab, "endpoints")
        assert found["level"] == "warn" and interface in found["summary"]
    finally:
        agent.send(18)


def test_docker_is_down(lab: Lab) -> None:
    """dockerd has ended; all else is looked at all the same."""
    lab.docker("host1").stop()
    try:
        assert [one["check"] for one in problems(lab, "docker", "networks", "etcd", "bgp")] == ["docker"]
    finally:
        lab.docker("host1").start()
