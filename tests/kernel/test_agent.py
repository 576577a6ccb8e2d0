"""The agent on a real kernel, etcd and nftables: endpoints come, go, survive restarts and outages."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator

import pytest

from calico_plugin.agent.lock import is_alive
from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline
from calico_plugin.model import keys, names
from calico_plugin.observe.log import BUG_MARKER
from tests.kernel.agent_host import AgentHost, wait_until

pytestmark = pytest.mark.root

A, B, C = "a" * 64, "b" * 64, "c" * 64
CALI_A = names.host_interface(A)


@pytest.fixture
def host(tmp_path: Path, etcd: str, kv: EtcdKV) -> Iterator[AgentHost]:
    """A host whose agent is not started yet, in a cluster with one profile that allows all."""
    with AgentHost(tmp_path, etcd, kv) as one:
        one.open_profile()
        yield one
        assert BUG_MARKER not in one.text(), one.text()


def container(host: AgentHost, endpoint: str, address: str) -> str:
    """Put the container end of an endpoint into a namespace of its own, as Docker does; the namespace's name."""
    netns = f"{host.netns}{endpoint[0]}"
    inside = names.temporary_interface(endpoint)
    subprocess.run(["ip", "netns", "add", netns], check=True)
    host.ip("link", "set", inside, "netns", netns)
    for words in (
        f"link set {inside} name cali0 address 02:00:00:00:00:01 up",
        f"addr add {address}/32 dev cali0",
        "route add 169.254.1.1 dev cali0",
        "route add default via 169.254.1.1 dev cali0",
    ):
        subprocess.run(["ip", "-n", netns, *words.split()], check=True)
    return netns


def pings(netns: str, address: str) -> bool:
    words = ["ip", "netns", "exec", netns, "ping", "-c1", "-W1", address]
    return subprocess.run(words, capture_output=True).returncode == 0


class Monitors:
    """`ip monitor` and `nft monitor` of a host: what anybody changed meanwhile."""

    def __init__(self, host: AgentHost) -> None:
        # The kernel tells a link's state up to a second after it changed, and nothing says when it has told all.
        time.sleep(1.2)
        self._files = []
        self._processes = []
        for name, words in (("ip", ["ip", "monitor", "link", "route", "address"]), ("nft", ["nft", "monitor"])):
            path = host.base / f"{name}.monitor"
            with path.open("wb") as file:
                self._processes.append(subprocess.Popen(host.command(*words), stdout=file, stderr=file))
            self._files.append(path)
        time.sleep(0.3)  # nothing tells when a monitor listens

    def end(self) -> str:
        time.sleep(0.2)
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
            process.wait()
        return "".join(path.read_text() for path in self._files)


class TestEndpoint:
    def test_policy_is_in_force_before_the_link_exists(self, host: AgentHost) -> None:
        """An endpoint in etcd alone is policed already, and has neither route nor status file."""
        host.started()
        host.put(host.endpoint(A, "10.65.0.1"))
        wait_until("the endpoint's chain", lambda: f'"{CALI_A}" : goto' in host.table())
        assert host.routes() == []
        assert not host.is_up(A)

    def test_link_gets_settings_route_and_status_file(self, host: AgentHost) -> None:
        """A bare link of an endpoint is set up, routed, and told as up the way Felix does."""
        host.started().up(A, "10.65.0.1", "fd65::1")
        assert f"10.65.0.1 dev {CALI_A} scope link linkdown" in host.routes()
        assert any(route.startswith(f"fd65::1 dev {CALI_A}") for route in host.routes())
        assert host.status(A) == {
            "ifaceName": CALI_A,
            "mac": "02:00:00:00:00:01",
            "ipv4Nets": ["10.65.0.1/32"],
            "ipv6Nets": ["fd65::1/128"],
        }
        for name, value in (
            (f"net/ipv4/conf/{CALI_A}/proxy_arp", "1"),
            (f"net/ipv4/conf/{CALI_A}/forwarding", "1"),
            (f"net/ipv4/neigh/{CALI_A}/proxy_delay", "0"),
            (f"net/ipv6/conf/{CALI_A}/accept_ra", "0"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ):
            assert host.run("cat", f"/proc/sys/{name}").strip() == value, name

    def test_endpoint_after_its_link(self, host: AgentHost) -> None:
        """The order of the two does not matter."""
        host.started().add_link(A)
        host.put(host.endpoint(A, "10.65.0.1"))
        wait_until("the endpoint", lambda: host.is_up(A))

    def test_removed_endpoint_leaves_nothing(self, host: AgentHost) -> None:
        """Status file, route and rules go when the endpoint leaves etcd, before its link does."""
        made = host.started().up(A, "10.65.0.1")
        host.remove(made)
        wait_until("the file to go", lambda: not host.is_up(A))
        wait_until("the route to go", lambda: not any("10.65.0.1" in route for route in host.routes()))
        wait_until("the rules to go", lambda: CALI_A not in host.table())

    def test_file_says_the_truth_when_the_link_goes(self, host: AgentHost) -> None:
        """No status file without link; it comes back with the link."""
        host.started().up(A, "10.65.0.1")
        host.delete_link(A)
        wait_until("the file to go", lambda: not host.is_up(A))
        host.add_link(A)
        wait_until("the endpoint", lambda: host.is_up(A))

    def test_endpoint_of_another_host_is_none_of_ours(self, host: AgentHost) -> None:
        """Only the host part of the name counts; a link of that name is not programmed."""
        host.started()
        other = AgentHost(host.base, "http://127.0.0.1:1", host.kv, node="host-2")
        host.put(other.endpoint(A, "10.65.0.1"))
        host.add_link(A)
        host.up(B, "10.65.0.2")
        assert not host.is_up(A)
        assert not any("10.65.0.1" in route for route in host.routes())

    def test_containers_reach_each_other(self, host: AgentHost) -> None:
        """Two containers behind the agent's routes, policy and proxy ARP ping each other; the first packet arrives."""
        host.started().up(A, "10.65.0.1")
        host.up(B, "10.65.0.2")
        first, second = container(host, A, "10.65.0.1"), container(host, B, "10.65.0.2")
        try:
            assert pings(first, "10.65.0.2")
            assert pings(second, "10.65.0.1")
        finally:
            for netns in (first, second):
                subprocess.run(["ip", "netns", "del", netns], check=True)

    def test_connections_of_a_released_address_are_forgotten(self, host: AgentHost) -> None:
        """After an endpoint went, the kernel knows no connection of its address; others stay."""
        host.started().up(A, "10.65.0.1")
        made = host.up(B, "10.65.0.2")
        host.up(C, "10.65.0.3")
        spaces = [container(host, one, f"10.65.0.{number}") for number, one in ((1, A), (2, B), (3, C))]
        try:
            assert pings(spaces[0], "10.65.0.2") and pings(spaces[0], "10.65.0.3")
            assert "10.65.0.2" in host.run("conntrack", "-L")
            host.remove(made)
            wait_until("the connections to go", lambda: "10.65.0.2" not in host.run("conntrack", "-L"))
            assert "10.65.0.3" in host.run("conntrack", "-L")
        finally:
            for netns in spaces:
                subprocess.run(["ip", "netns", "del", netns], check=True)

    def test_address_moves_to_a_new_endpoint_at_once(self, host: AgentHost) -> None:
        """An address that is given again right after its release works at once."""
        made = host.started().up(A, "10.65.0.1")
        host.add_link(B)
        host.remove(made)
        host.put(host.endpoint(B, "10.65.0.1"))
        began = time.monotonic()
        wait_until("the new endpoint", lambda: host.is_up(B))
        assert time.monotonic() - began < 0.4
        assert f"10.65.0.1 dev {names.host_interface(B)} scope link linkdown" in host.routes()

    def test_two_endpoints_on_one_interface(self, host: AgentHost) -> None:
        """The smaller endpoint is active; the other takes over when it goes."""
        host.started()
        smaller, larger = A[:11] + "0" * 53, A[:11] + "1" * 53
        host.put(host.endpoint(larger, "10.65.0.2"))
        host.add_link(A)
        wait_until("the only endpoint", lambda: host.is_up(larger))
        first = host.endpoint(smaller, "10.65.0.1")
        host.put(first)
        wait_until("the smaller endpoint", lambda: host.is_up(smaller) and not host.is_up(larger))
        host.remove(first)
        wait_until("the larger endpoint again", lambda: host.is_up(larger) and not host.is_up(smaller))


class TestDrift:
    def test_deleted_route_and_file_come_back(self, host: AgentHost) -> None:
        """Who deletes a route of ours by hand gets it back at once, a file within the upkeep's 10 s."""
        host.started().up(A, "10.65.0.1")
        host.ip("route", "del", "10.65.0.1")
        wait_until("the route", lambda: any("10.65.0.1" in route for route in host.routes()), 2)
        host.status_path(A).unlink()
        wait_until("the file", lambda: host.is_up(A), 12)

    def test_link_set_down_comes_up_with_its_route(self, host: AgentHost) -> None:
        """The kernel drops routes of a link that goes down without a word; they come back with it."""
        host.started().up(A, "10.65.0.1", "fd65::1")
        host.ip("link", "set", CALI_A, "down")
        wait_until("both routes", lambda: sum(CALI_A in route for route in host.routes()) >= 2)
        assert host.is_up(A)

    def test_deleted_table_comes_back(self, host: AgentHost) -> None:
        """Who deletes our table (or flushes all) opens the host for seconds only; others' tables are not touched."""
        host.started().up(A, "10.65.0.1")
        host.run("nft", "add", "table", "inet", "theirs")
        before = host.table()
        host.run("nft", "delete", "table", "inet", "calico")
        wait_until("the table", lambda: host.table() == before, 8)
        assert "theirs" in host.run("nft", "list", "tables")
        assert "somebody changed our table" in host.text()

    def test_routes_of_others_stay(self, host: AgentHost) -> None:
        """Routes of other protocols are not removed, not even on our links."""
        host.started().up(A, "10.65.0.1")
        host.ip("route", "add", "10.99.0.0/24", "dev", "lo", "proto", "bird")
        host.ip("route", "add", "10.99.1.1/32", "dev", CALI_A, "proto", "static")
        host.ip("route", "add", "10.99.1.2/32", "dev", CALI_A, "proto", "80")
        wait_until("the stray route of ours to go", lambda: not any("10.99.1.2" in route for route in host.routes()))
        shown = host.ip("route", "show")
        assert "10.99.0.0/24" in shown and "10.99.1.1" in shown

    def test_link_without_endpoint_is_removed_after_its_grace(self, host: AgentHost) -> None:
        """A leftover link goes after 10 s; one that got its endpoint meanwhile stays."""
        host.started().add_link(A)
        host.add_link(B)
        time.sleep(7)
        host.put(host.endpoint(B, "10.65.0.2"))
        assert CALI_A in host.ip("link")
        wait_until("the leftover to go", lambda: CALI_A not in host.ip("link"), 8)
        time.sleep(3)
        assert names.host_interface(B) in host.ip("link")

    def test_host_without_default_route_answers_for_the_gateway(self, host: AgentHost) -> None:
        """A route for the gateway is added where none covers it, and only there."""
        host.started().up(A, "10.65.0.1")
        assert "169.254.1.1 dev lo" in host.ip("route", "show")

    def test_default_route_is_enough(self, host: AgentHost) -> None:
        """With a default route nothing is added; when it goes, ours comes, through the link that holds an address."""
        host.ip("link", "add", "eth0", "type", "veth", "peer", "eth1")
        for words in ("link set eth0 up", "link set eth1 up", "addr add 192.0.2.1/24 dev eth0"):
            host.ip(*words.split())
        host.ip("route", "add", "default", "via", "192.0.2.254")
        host.started().up(A, "10.65.0.1")
        assert "169.254.1.1" not in host.ip("route", "show")
        host.ip("route", "del", "default")
        wait_until("the gateway's route", lambda: "169.254.1.1 dev eth0" in host.ip("route", "show"))

    def test_docker_user_and_forward_drop(self, host: AgentHost) -> None:
        """Where FORWARD drops, our links are accepted: at the start, and in DOCKER-USER when Docker comes."""
        host.run("iptables-nft", "-P", "FORWARD", "DROP")
        host.started()
        wait_until("the accept rules", lambda: host.run("iptables-nft", "-S", "FORWARD").count("cali+") == 2)


class TestRestart:
    def test_restart_touches_nothing_that_is_right(self, host: AgentHost) -> None:
        """kill -9 and start again: not one route, link, rule or file is changed."""
        host.started()
        for number, one in enumerate((A, B, C), 1):
            host.up(one, f"10.65.0.{number}", f"fd65::{number}")
        # A change after the last pass is not to be taken for one of the restart's.
        time.sleep(0.5)
        files = {one: host.status_path(one).stat() for one in (A, B, C)}
        before = host.table()
        host.kill()
        monitors = Monitors(host)
        host.started()
        time.sleep(0.5)
        assert monitors.end() == ""
        assert host.table() == before
        for one, stat in files.items():
            now = host.status_path(one).stat()
            assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)

    def test_what_happened_while_down_is_made_good(self, host: AgentHost) -> None:
        """Endpoints that came and went while no agent ran are dealt with by the first pass."""
        host.started()
        gone = host.up(A, "10.65.0.1")
        host.up(B, "10.65.0.2")
        host.kill()
        host.remove(gone)
        host.put(host.endpoint(C, "10.65.0.3"))
        host.add_link(C)
        host.started()
        wait_until("the new one", lambda: host.is_up(C))
        assert not host.is_up(A) and host.is_up(B)
        assert not any("10.65.0.1" in route for route in host.routes())
        assert CALI_A not in host.table()

    def test_nothing_is_removed_before_the_first_listing(self, host: AgentHost) -> None:
        """An agent that starts without etcd leaves rules, routes, links and files as they are."""
        host.started().up(A, "10.65.0.1")
        host.kill()
        host.door.shut()
        monitors = Monitors(host)
        host.start()
        wait_until("the start", lambda: host.text().count('event=started') == 2)
        time.sleep(3)
        assert monitors.end() == ""
        assert host.is_up(A)
        host.door.reopen()
        host.up(B, "10.65.0.2")
        assert host.is_up(A)

    def test_sigterm_ends_soon_and_leaves_all(self, host: AgentHost) -> None:
        """SIGTERM ends the agent within 2 s; the host goes on."""
        host.started().up(A, "10.65.0.1")
        routes, table = host.routes(), host.table()
        assert is_alive(host.run_dir)
        assert host.stop() < 2
        assert (host.routes(), host.table()) == (routes, table)
        assert host.is_up(A)
        assert not is_alive(host.run_dir)

    def test_sigterm_without_etcd(self, host: AgentHost) -> None:
        """It ends as soon when etcd does not answer."""
        host.door.shut()
        host.start()
        wait_until("the start", lambda: "event=started" in host.text())
        assert host.stop() < 2

    def test_sigterm_while_etcd_hangs(self, host: AgentHost) -> None:
        """A status report that waits for an answer does not hold the end up."""
        host.settings["FELIX_REPORTINGINTERVALSECS"] = "1"
        host.started()
        time.sleep(10)  # the first report comes after so long
        host.door.freeze()
        time.sleep(1.5)
        assert host.stop() < 2

    def test_second_agent_refuses(self, host: AgentHost) -> None:
        """It names the process that runs already."""
        host.started()
        first = host.agent
        assert first is not None
        host.start()
        assert host.agent is not None and host.agent.wait(10) == 1
        host.agent = first
        assert f"runs already as process {first.pid}" in host.text()

    def test_outage_of_etcd(self, host: AgentHost) -> None:
        """While etcd is away everything stays; afterwards new endpoints work, and nothing flapped."""
        host.started().up(A, "10.65.0.1")
        monitors = Monitors(host)
        host.door.shut()
        time.sleep(3)
        assert host.is_up(A)
        host.door.reopen()
        gone = host.endpoint(A, "10.65.0.1")
        assert monitors.end() == ""
        assert host.text().count("lost the datastore") == 1
        host.up(B, "10.65.0.2")
        assert "in sync with the datastore again" in host.text()
        host.remove(gone)
        wait_until("the removed one to go", lambda: not host.is_up(A))


class TestLoad:
    def test_churn_leaves_nothing(self, host: AgentHost) -> None:
        """Many short lives at once on few addresses that come round again: all came up, and nothing is left."""
        host.started()
        lives, addresses = 60, [f"10.65.0.{number}" for number in range(1, 9)]

        def live(address: str) -> None:
            for _ in range(lives // len(addresses)):
                endpoint = os.urandom(32).hex()
                made = host.up(endpoint, address)
                host.remove(made)
                host.delete_link(endpoint)

        with ThreadPoolExecutor(len(addresses)) as pool:
            list(pool.map(live, addresses))
        wait_until("all files to go", lambda: not list(host.status_path(A).parent.iterdir()))
        wait_until("all routes to go", lambda: not any("10.65." in route for route in host.routes()))
        wait_until("all rules to go", lambda: '"cali' not in host.table().replace('"cali*"', ""))

    def test_lost_events_are_made_good(self, host: AgentHost) -> None:
        """More link events than the kernel keeps while the agent is frozen: it reads everything anew."""
        host.started().up(A, "10.65.0.1")
        gone = host.up(B, "10.65.0.2")
        assert host.agent is not None
        host.agent.send_signal(signal.SIGSTOP)
        host.remove(gone)
        host.delete_link(B)
        host.put(host.endpoint(C, "10.65.0.3"))
        host.add_link(C)
        host.ip("link", "set", CALI_A, "down")
        batch = host.base / "batch"
        batch.write_text("".join(f"link set lo alias {number}\n" for number in range(30000)))
        host.ip("-batch", str(batch))
        host.agent.send_signal(signal.SIGCONT)
        wait_until("the new endpoint", lambda: host.is_up(C))
        wait_until("the old one to go", lambda: not host.is_up(B))
        wait_until("the route of the link that was down", lambda: any("10.65.0.1 " in route for route in host.routes()))
        assert "link events were lost" in host.text()


class TestReports:
    def test_metrics_and_health(self, host: AgentHost) -> None:
        """Felix's names on 9091; ready only after the first pass, alive before."""
        host.door.shut()
        host.start()
        fetch = "import urllib.request,sys;print(urllib.request.urlopen(sys.argv[1]).read().decode())"
        python = host.run("which", "python3").strip()

        def get(url: str) -> str:
            return host.run(python, "-c", fetch, url, check=False)

        wait_until("liveness", lambda: "reporting live" in get("http://127.0.0.1:9099/liveness"))
        assert get("http://127.0.0.1:9099/readiness") == ""
        host.door.reopen()
        wait_until("readiness", lambda: "InternalDataplaneMainLoop" in get("http://127.0.0.1:9099/readiness"), 20)
        host.up(A, "10.65.0.1")
        metrics = get("http://127.0.0.1:9091/metrics")
        assert "felix_active_local_endpoints 1.0" in metrics
        assert "felix_resync_state 3.0" in metrics
        assert 'felix_host{host="host-1"} 1.0' in metrics

    def test_status_keys(self, host: AgentHost) -> None:
        """Process status under a lease 10 s after the start, and endpoint status when it is asked for."""
        host.kv.put(
            keys.resource("FelixConfiguration", "default"),
            b'{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},'
            b'"spec":{"endpointReportingEnabled":true}}',
            Deadline(5),
        )
        made = host.started().up(A, "10.65.0.1")
        key = keys.endpoint_status(host.node, names.ORCHESTRATOR, f"{names.NAMESPACE}/{names.WORKLOAD}", A)

        def value(key: str) -> bytes:
            item = host.kv.get(key, Deadline(5))
            return item.value if item else b""

        wait_until("the endpoint's status", lambda: value(key) == b'{"status":"up"}')
        host.remove(made)
        wait_until("it to go", lambda: value(key) == b"")
        last = keys.felix_last_status(host.node)
        wait_until("the process's status", lambda: b'"first_update":true' in value(last), 15)
        live = host.kv.get(keys.felix_status(host.node), Deadline(5))
        assert live is not None and live.lease != 0


class TestCost:
    def test_latency_memory_and_idle(self, host: AgentHost) -> None:
        """From etcd to the status file in milliseconds, below 100 MB, little when idle (generous: CI is busy)."""
        host.started().add_link(A)
        times = []
        for number in range(30):
            made = host.endpoint(A, f"10.65.1.{number}")
            began = time.perf_counter()
            host.put(made)
            wait_until("the endpoint", lambda: host.is_up(A), pause=0.0005)
            times.append(time.perf_counter() - began)
            host.remove(made)
            wait_until("it to go", lambda: not host.is_up(A))
        assert sorted(times)[15] < 0.05
        assert host.resident_mb() < 100
        before = host.cpu_seconds()
        time.sleep(5)
        assert host.cpu_seconds() - before < 0.25
