"""Which containers calico-node starts once Calico is ready."""

from __future__ import annotations

from typing import Any

import pytest

from calico_plugin.node.docker_life import is_stranded

OURS = {"n1", "n2"}
# As Docker 28.5 words it; 20.10 has the second half.
MISSING = 'failed to set up container networking: plugin "calico-ipam" not found'
AWAY = "failed to create endpoint a on network cal: NetworkDriver.CreateEndpoint: etcd does not answer"


def container(error: str, policy: str = "always", network: str = "n1") -> dict[str, Any]:
    return {
        "HostConfig": {"RestartPolicy": {"Name": policy}},
        "NetworkSettings": {"Networks": {"cal": {"NetworkID": network}, "bridge": {"NetworkID": "b"}}},
        "State": {"Error": error},
    }


@pytest.mark.parametrize("policy", ["always", "unless-stopped", "on-failure"])
@pytest.mark.parametrize("error", [MISSING, AWAY, "could not resolve driver calico in registry"])
def test_what_failed_at_the_driver_is_started(error: str, policy: str) -> None:
    assert is_stranded(container(error, policy), OURS)


@pytest.mark.parametrize(
    "other",
    [
        container(MISSING, policy="no"),
        container(MISSING, policy=""),
        container(MISSING, network="theirs"),
        container(""),
        container("OCI runtime create failed: exec: no such file"),
    ],
)
def test_nothing_else_is(other: dict[str, Any]) -> None:
    """Without a policy, on no network of ours, stopped by somebody, or failed for a reason of its own."""
    assert not is_stranded(other, OURS)
