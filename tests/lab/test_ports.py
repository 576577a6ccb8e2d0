"""`docker run -p` and `-P` on Calico networks, with real Docker: reached from everywhere, refused when taken, freed."""
from __future__ import annotations

import json
import re
import signal
from typing import Iterator

import pytest

from tests.lab import leaks
from tests.lab.connectivity import Container
from tests.lab.lab import Lab
from tests.lab.wait import wait_for

CREATE = ("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam")
# A web server that answers with the address of its client.
SERVER = """mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo $REMOTE_ADDR\\n' >/www/cgi-bin/who
chmod +x /www/cgi-bin/who; exec httpd -f -p 80 -h /www"""
DIRECTORY = "/var/run/calico/published-ports"


@pytest.fixture
def net(pair: Lab) -> Iterator[str]:
    """A network on host1 (the agents carry it to host2); nothing is left after the test."""
    pair["host1"].run(*CREATE, "ports")
    yield "ports"
    pair.docker("host1").remove_all_containers()
    listing = ("docker", "network", "ls", "-f", "driver=calico", "--format", "{{.Name}}")
    for name in pair["host1"].run(*listing).stdout.split():
        pair["host1"].run("docker", "network", "rm", name)
    wait_for("nothing left", lambda: leaks.none(pair), 20, 0.3)
    wait_for("no port", lambda: not pair["host1"].run("ls", DIRECTORY).stdout.split(), 10, 0.1)
    wait_for("no network left", lambda: not pair["host2"].run(*listing).stdout.split(), 20, 0.2)


def serve(lab: Lab, name: str, net: str, *options: str, check: bool = True) -> str:
    """docker run -d of a web server on host1; what Docker says."""
    words = ("docker", "run", "-d", "--init", "--name", name, "--net", net, *options, "busybox", "sh", "-c", SERVER)
    return lab["host1"].run(*words, check=check).stdout


def address(lab: Lab, host: str = "host1") -> str:
    return str(lab.spec.address(host).ip)


def request(url: str) -> tuple[str, ...]:
    """A command that asks the server who asks, for a second at most; busybox's own wget crashes."""
    place, _, port = url.rpartition(":")
    line = r"printf 'GET /cgi-bin/who HTTP/1.0\r\n\r\n'"
    return "sh", "-c", f"exec 2>/dev/null; {line} | timeout 1 busybox nc {place} {port}"


def told(answer: str) -> str:
    """The client's address in the server's answer; nothing when there is none."""
    return answer.strip().rpartition("\n")[2].strip("[]").removeprefix("::ffff:")


def asks(lab: Lab, host: str, url: str) -> str:
    """As whom the server sees a process of a host; nothing when it cannot be reached."""
    return told(lab[host].run(*request(url), check=False).stdout)


def asks_inside(one: Container, url: str) -> str:
    return told(one.run(*request(url), check=False))


def doors(lab: Lab) -> list[str]:
    """Published ports of host1, as the agent says."""
    text = lab["host1"].shell(f"cat {DIRECTORY}/* 2>/dev/null; true")
    return re.findall(r"^0\.0\.0\.0:(\d+/\w+) ", text, re.M)


def test_published_port(pair: Lab, net: str) -> None:
    """From outside with the client's address, from the host, from containers and the container itself. A taken port is
    refused both ways and leaves nothing; the next one gets it as soon as it is free.
    """
    host1, here = pair["host1"], address(pair)
    serve(pair, "web", net, "-p", "8080:80", "-p", "127.0.0.1:8081:80")
    web = Container(host1, "web")
    assert doors(pair) == ["8080/tcp"]
    wait_for("the server", lambda: asks(pair, "host1", f"{web.address()}:80"), 10)
    assert asks(pair, "host2", f"{here}:8080") == address(pair, "host2")
    assert asks(pair, "host1", f"{here}:8080") == here
    assert asks(pair, "host1", "127.0.0.1:8080") and asks(pair, "host1", "127.0.0.1:8081")
    assert not asks(pair, "host2", f"{here}:8081") and not asks(pair, "host1", f"{here}:8081")
    assert not asks(pair, "host2", f"{web.address()}:80"), "the profile lets members in only"
    host1.run(*CREATE, "ports_b")
    host1.run("docker", "run", "-d", "--init", "--name", "client", "--net", "ports_b", "busybox", "sleep", "100000")
    client = Container(host1, "client")
    assert asks_inside(client, f"{here}:8080") == client.address() and not asks_inside(client, f"{web.address()}:80")
    assert asks_inside(web, f"{here}:8080") == here
    assert json.loads(web.inspect("{{json .HostConfig.PortBindings}}"))["80/tcp"][0]["HostPort"] == "8080"
    said = serve(pair, "second", net, "-p", "8080:80", check=False)
    assert "port 0.0.0.0:8080/tcp of this host is taken" in said and web.endpoint()[:12] in said, said
    said = serve(pair, "third", "bridge", "-p", "8080:80", check=False)
    assert "address already in use" in said or "port is already allocated" in said, said
    host1.run("docker", "rm", "second", "third")
    wait_for("nothing of it", lambda: leaks.none(pair), 10, 0.1)
    host1.run("docker", "stop", "-t", "1", "web")
    serve(pair, "second", net, "-p", "8080:80")
    wait_for("the server", lambda: asks(pair, "host2", f"{here}:8080"), 10)


@pytest.mark.long
def test_ranges_and_exposed_ports(pair: Lab, net: str) -> None:
    """-P, any port, a range that two containers share, udp; what Docker's bridge publishes is taken."""
    serve(pair, "any", net, "--expose", "80", "-P", "-p", "80/udp")
    tcp, udp = (next(door for door in doors(pair) if door.endswith(kind)) for kind in ("tcp", "udp"))
    port = tcp.split("/")[0]
    wait_for("the server", lambda: asks(pair, "host2", f"{address(pair)}:{port}") == address(pair, "host2"), 10)
    low, high = map(int, pair["host1"].run("cat", "/proc/sys/net/ipv4/ip_local_port_range").stdout.split())
    assert low <= int(port) <= high and udp
    for number in range(2):
        serve(pair, f"range{number}", net, "-p", "9000-9001:80")
    assert {"9000/tcp", "9001/tcp"} <= set(doors(pair))
    said = serve(pair, "range2", net, "-p", "9000-9001:80", check=False)
    assert "9000-9001/tcp of this host is taken: none of them is free" in said, said
    serve(pair, "bridged", "bridge", "-p", "8082:80")
    said = serve(pair, "second", net, "-p", "8082:80", check=False)
    assert "port 0.0.0.0:8082/tcp of this host is taken: a process of the host" in said, said


@pytest.mark.long
@pytest.mark.parametrize("how", ["kill", "restart"])
def test_docker_restart_frees_and_publishes_again(pair: Lab, net: str, how: str) -> None:
    """A container that comes back with Docker has its port; one that does not has left none behind."""
    serve(pair, "kept", net, "-p", "8080:80", "--restart", "always")
    serve(pair, "lost", net, "-p", "8081:80")
    docker = pair.docker("host1")
    docker.kill() if how == "kill" else docker.stop()
    docker.start()
    wait_for("the kept one", lambda: asks(pair, "host2", f"{address(pair)}:8080") == address(pair, "host2"), 60, 0.3)
    wait_for("the other's end", lambda: doors(pair) == ["8080/tcp"], 40, 0.3)
    wait_for("nothing of it", lambda: leaks.none(pair), 40, 0.5)
    serve(pair, "next", net, "-p", "8081:80")
    wait_for("the next one", lambda: asks(pair, "host2", f"{address(pair)}:8081"), 10)


@pytest.mark.long
def test_live_restore(pair: Lab, net: str) -> None:
    """The port works through a restart of dockerd, and of the driver, and is freed with the container."""
    machine, docker = pair["host1"], pair.docker("host1")
    serve(pair, "live", net, "-p", "8080:80")
    machine.shell("""echo '{"live-restore": true}' > /etc/docker/daemon.json""")
    docker.process().send(signal.SIGHUP)
    try:
        wait_for("live-restore", lambda: "Live Restore Enabled: true" in machine.run("docker", "info").stdout, 10)
        docker.restart()
        pair.node("host1").kill("driver")
        assert asks(pair, "host2", f"{address(pair)}:8080") == address(pair, "host2")
        wait_for("the driver", lambda: "is taken" in serve(pair, "other", net, "-p", "8080:80", check=False) or
                 machine.run("docker", "rm", "-f", "other") is None, 30, 0.5)
        machine.run("docker", "rm", "-f", "live", "other")
        wait_for("no port", lambda: not doors(pair), 10)
        serve(pair, "other", net, "-p", "8080:80")
        wait_for("the next one", lambda: asks(pair, "host2", f"{address(pair)}:8080"), 10)
    finally:
        machine.run("rm", "-f", "/etc/docker/daemon.json")
        docker.restart()


@pytest.mark.long
def test_several_networks(pair: Lab, net: str) -> None:
    """The network with the default route publishes, whichever that is; a bridge's ports are Docker's own."""
    host, here = pair["host1"], address(pair)
    host.run(*CREATE, "ports_z")
    serve(pair, "many", net, "-p", "8080:80")
    host.run("docker", "network", "connect", "ports_z", "many")
    wait_for("the server", lambda: asks(pair, "host2", f"{here}:8080") == address(pair, "host2"), 10)
    host.run("docker", "network", "disconnect", net, "many")
    wait_for("the other network", lambda: asks(pair, "host2", f"{here}:8080") == address(pair, "host2"), 10)
    assert doors(pair) == ["8080/tcp"]
    host.run("docker", "network", "connect", net, "many")
    assert doors(pair) == ["8080/tcp"] and asks(pair, "host2", f"{here}:8080") == address(pair, "host2")
    host.run("docker", "network", "create", "a_bridge")
    try:
        host.run("docker", "network", "connect", "a_bridge", "many")
        assert doors(pair) == [] and asks(pair, "host2", f"{here}:8080"), "now Docker's bridge publishes"
        host.run("docker", "network", "disconnect", "a_bridge", "many")
        assert doors(pair) == ["8080/tcp"] and asks(pair, "host2", f"{here}:8080") == address(pair, "host2")
        host.run("docker", "run", "-d", "--init", "--name", "beside", "--net", "bridge", "busybox", "sleep", "100000")
        assert asks_inside(Container(host, "beside"), f"{here}:8080") == here, "by Docker's rule"
        host.run("docker", "rm", "-f", "many")
    finally:
        pair.docker("host1").remove_all_containers()
        host.run("docker", "network", "rm", "a_bridge")


POOL6 = """apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: six}
spec: {cidr: "fd00:ca12::/48"}
"""
ADDRESSES6 = {"host1": "fd00:20::1", "host2": "fd00:20::2"}


@pytest.mark.long
def test_ipv6(pair: Lab, net: str) -> None:
    """Both families at the same port, each with its client's address."""
    for host, own in ADDRESSES6.items():
        link = pair[host].shell("ip -o route get 172.20.62.1 | sed 's/.* dev \\([^ ]*\\).*/\\1/'").strip()
        pair[host].run("ip", "addr", "add", f"{own}/64", "dev", link, "nodad")
    pair["host1"].run("sh", "-c", "cat >/run/six.yaml", stdin=POOL6.encode())
    pair.node("host1").ctl("create", "-f", "/run/six.yaml")
    try:
        pair["host1"].run(*CREATE, "--ipv6", "ports_six")
        serve(pair, "six", "ports_six", "-p", "80")
        (door,) = doors(pair)
        port = door.split("/")[0]
        wait_for("the server", lambda: asks(pair, "host2", f"{address(pair)}:{port}") == address(pair, "host2"), 10)
        assert asks(pair, "host2", f"{ADDRESSES6['host1']}:{port}") == ADDRESSES6["host2"]
        assert asks(pair, "host1", f"{ADDRESSES6['host1']}:{port}") == ADDRESSES6["host1"]
        said = serve(pair, "four", net, "-p", f"[{ADDRESSES6['host1']}]:8080:80", check=False)
        assert "the container has no IPv6 address" in said, said
    finally:
        pair.docker("host1").remove_all_containers()
        pair["host1"].run("docker", "network", "rm", "ports_six", check=False)
        pair.node("host1").ctl("delete", "ippool", "six", check=False)


@pytest.mark.long
def test_network_without_default_route(pair: Lab, net: str) -> None:
    """`default-route=false`: Docker's bridge publishes, and lists the port."""
    pair["host1"].run(*CREATE, "--opt", "default-route=false", "ports_r")
    serve(pair, "routed", "ports_r", "-p", "8080:80")
    wait_for("the server", lambda: asks(pair, "host2", f"{address(pair)}:8080"), 10)
    assert doors(pair) == [] and ":8080->80" in pair["host1"].run("docker", "ps").stdout
