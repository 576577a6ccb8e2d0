"""One container in two networks: it answers at both addresses, whichever link has its default route."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.model import names
from tests.kernel.agent_host import AgentHost, wait_until

pytestmark = pytest.mark.root

A, B, C = "a" * 64, "b" * 64, "c" * 64
ADDRESSES = {A: "192.168.5.1", B: "192.168.5.2", C: "192.168.5.3"}


@pytest.fixture
def host(tmp_path: Path, etcd: str, kv: EtcdKV) -> Iterator[AgentHost]:
    """Endpoints A and B in one namespace (`<host>two`), C in another (`<host>one`); the agent runs."""
    with AgentHost(tmp_path, etcd, kv) as one:
        one.open_profile()
        spaces = [f"{one.netns}two", f"{one.netns}one"]
        for space in spaces:
            subprocess.run(["ip", "netns", "add", space], check=True)
        try:
            yield one
        finally:
            for space in spaces:
                subprocess.run(["ip", "netns", "del", space], check=True)


def put_inside(host: AgentHost, endpoint: str, space: str, hop: str, default: bool) -> None:
    inside = names.temporary_interface(endpoint)
    host.ip("link", "set", inside, "netns", f"{host.netns}{space}")
    words = [f"link set {inside} up", f"addr add {ADDRESSES[endpoint]}/32 dev {inside}"]
    words.append(f"route add {hop} dev {inside}")
    words += [f"route add default via {hop} dev {inside}"] if default else []
    for line in words:
        subprocess.run(["ip", "-n", f"{host.netns}{space}", *line.split()], check=True)


def pings(host: AgentHost, space: str, target: str, *options: str) -> bool:
    words = ["ip", "netns", "exec", f"{host.netns}{space}", "ping", "-c1", "-W1", *options, target]
    return subprocess.run(words, capture_output=True).returncode == 0


def elements(host: AgentHost) -> set[str]:
    text = host.run("nft", "list", "set", "inet", "calico", "sibling-address4", check=False)
    return set(re.findall(r'"(\w+)" \. ([\d.]+)', text))


def both() -> set[tuple[str, str]]:
    return {(names.host_interface(A), ADDRESSES[B]), (names.host_interface(B), ADDRESSES[A])}


@pytest.mark.parametrize("strict", ["0", "1", "2"])
def test_second_address_answers(host: AgentHost, strict: str) -> None:
    """Also where the kernel checks the way back strictly; as soon as the second link is inside, and after a restart.

    What the container starts itself goes by the address of the link; the other address is refused.
    """
    host.run("sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={strict}", f"net.ipv4.conf.default.rp_filter={strict}")
    host.started()
    for endpoint in (A, B, C):
        host.up(endpoint, ADDRESSES[endpoint])
    put_inside(host, A, "two", "169.254.1.1", default=True)
    put_inside(host, C, "one", "169.254.1.1", default=True)
    # The kernel may take a moment to let a link carry packets after its end was moved.
    wait_until("the first address", lambda: pings(host, "one", ADDRESSES[A]))
    assert elements(host) == set()
    put_inside(host, B, "two", "169.254.1.2", default=False)
    wait_until("the second address", lambda: elements(host) == both())
    assert pings(host, "one", ADDRESSES[A]) and pings(host, "one", ADDRESSES[B])
    assert pings(host, "two", ADDRESSES[C]) and not pings(host, "two", ADDRESSES[C], "-I", ADDRESSES[B])
    host.kill()
    host.started()
    assert elements(host) == both() and pings(host, "one", ADDRESSES[B])


def test_link_that_is_taken_out_again(host: AgentHost) -> None:
    """`docker network disconnect`: the link is back in the host's namespace, and nothing is shared any more."""
    host.started()
    for endpoint in (A, B):
        host.up(endpoint, ADDRESSES[endpoint])
    put_inside(host, A, "two", "169.254.1.1", default=True)
    put_inside(host, B, "two", "169.254.1.2", default=False)
    wait_until("both addresses", lambda: elements(host) == both())
    subprocess.run(["ip", "-n", f"{host.netns}two", "link", "set", names.temporary_interface(B), "netns", host.netns],
                   check=True)
    wait_until("nothing to be shared", lambda: elements(host) == set(), 3)
