"""The agent and a real BIRD: its configuration follows the cluster, and a bad one changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest
from msgspec.structs import replace

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import Affinity
from calico_plugin.model.resources import BGPFilter, BGPPeer, Metadata, Node
from calico_plugin.model.resources.bgp import BGPPassword, BGPPeerSpec, SecretKeyRef
from calico_plugin.model.resources.node import NodeBGPSpec, NodeSpec
from calico_plugin.observe.log import BUG_MARKER
from calico_plugin.observe.problems import Problems
from calico_plugin.routing.bird import minimal
from tests.kernel import birdlab
from tests.kernel.agent_host import NODE, AgentHost, wait_until

pytestmark = pytest.mark.root


def node(name: str, address: str) -> Node:
    return Node(metadata=Metadata(name=name), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address=address)))


@pytest.fixture
def host(tmp_path: Path, etcd: str, kv: EtcdKV) -> Iterator[AgentHost]:
    """A host with an address whose agent does routing."""
    with AgentHost(tmp_path, etcd, kv) as one:
        one.settings["CALICO_NETWORKING_BACKEND"] = "bird"
        one.ip("link", "add", "eth0", "type", "veth", "peer", "eth1")
        for words in ("link set eth0 up", "link set eth1 up", "addr add 192.0.2.1/24 dev eth0"):
            one.ip(*words.split())
        one.put(node(NODE, "192.0.2.1/24"))
        yield one
        assert BUG_MARKER not in one.text(), one.text()


@pytest.fixture
def bird(host: AgentHost) -> Iterator[birdlab.Host]:
    """BIRD's process of that host, not started."""
    one = birdlab.Host(host.netns, host.run_dir)
    yield one
    if one.process is not None:
        one.process.kill()
        one.process.wait()


def sessions(bird: birdlab.Host) -> list[str]:
    return [one.name for one in bird.client.protocols() if one.kind == "BGP"]


class TestBird:
    def test_sessions_follow_the_nodes(self, host: AgentHost, bird: birdlab.Host) -> None:
        """A node that comes makes a session, one that goes ends it; the own block lies as a blackhole."""
        host.started()
        wait_until("a configuration", lambda: (host.run_dir / "bird.conf").exists())
        bird.start_bird()
        host.put(node("host-2", "192.0.2.2/24"))
        wait_until("the session", lambda: sessions(bird) == ["Mesh_192_0_2_2"])
        key = keys.affinity(NODE, "10.65.0.0/26")
        host.kv.put(key, codec.encode(Affinity(state="confirmed")), Deadline(5))
        wait_until("the block", lambda: "10.65.0.0/26" in bird.routes())
        host.remove(node("host-2", ""))
        wait_until("its end", lambda: sessions(bird) == [])

    def test_bird_that_started_on_an_older_file(self, host: AgentHost, bird: birdlab.Host) -> None:
        """It is given the present one within seconds, also by an agent that finds the file unchanged."""
        host.put(node("host-2", "192.0.2.2/24"))
        host.started()
        conf = host.run_dir / "bird.conf"
        wait_until("a configuration", lambda: conf.exists() and "Mesh_192_0_2_2" in conf.read_text())
        host.kill()
        text = conf.read_text()
        conf.write_text(minimal())
        bird.start_bird()
        conf.write_text(text)
        assert sessions(bird) == []
        host.started()
        wait_until("the session", lambda: sessions(bird) == ["Mesh_192_0_2_2"])

    def test_restart_does_not_reconfigure(self, host: AgentHost, bird: birdlab.Host) -> None:
        """A restarted agent that renders the same text leaves BIRD alone."""
        host.started()
        wait_until("a configuration", lambda: (host.run_dir / "bird.conf").exists())
        bird.start_bird()
        host.put(node("host-2", "192.0.2.2/24"))
        wait_until("the session", lambda: sessions(bird) == ["Mesh_192_0_2_2"])
        before = bird.client.status().last_reconfiguration
        host.kill()
        host.started()
        host.up("a" * 64, "10.65.0.1")
        wait_until("a look at the sessions", lambda: "calico_bgp_peers" in metrics(host))
        assert bird.client.status().last_reconfiguration == before

    def test_peer_that_makes_no_sense_costs_only_itself(self, host: AgentHost, bird: birdlab.Host) -> None:
        """It is told, counted, and the other sessions stay."""
        host.put(node("host-2", "192.0.2.2/24"))
        host.put(BGPPeer(metadata=Metadata(name="bad"), spec=BGPPeerSpec(peer_selector="has(", as_number=64512)))
        host.started()
        conf = host.run_dir / "bird.conf"
        wait_until("a configuration", lambda: conf.exists() and "Mesh_192_0_2_2" in conf.read_text())
        wait_until("the problem to be told", lambda: "BGPPeer(bad)" in host.text())
        bird.start_bird()
        assert sessions(bird) == ["Mesh_192_0_2_2"]

    def test_peer_that_bird_refuses_costs_only_itself(self, host: AgentHost, bird: birdlab.Host) -> None:
        """What only BIRD's parser finds wrong is left out, named with BIRD's words, and back when it is mended."""
        host.put(node("host-2", "192.0.2.2/24"))
        bad = BGPPeerSpec(peer_ip="192.0.2.77", as_number=65001, keepalive_time="300s", filters=("fine",))
        host.put(BGPFilter(metadata=Metadata(name="fine")))
        host.started()
        wait_until("a configuration", lambda: (host.run_dir / "bird.conf").exists())
        bird.start_bird()
        host.put(BGPPeer(metadata=Metadata(name="bad"), spec=bad))
        wait_until("the problem", lambda: "BGPPeer(bad)" in str(Problems(host.run_dir).read()))
        (told,) = Problems(host.run_dir).read()["bird"]
        assert "Global_192_0_2_77" in told and "Keepalive time must be at most hold time" in told
        assert sessions(bird) == ["Mesh_192_0_2_2"]
        assert 'calico_bird_left_out{what="BGPPeer(bad)"} 1.0' in metrics(host)
        assert "calico_bird_config_refused 0.0" in metrics(host)
        # A new node is not held up by it.
        host.put(node("host-3", "192.0.2.3/24"))
        wait_until("the session", lambda: sessions(bird) == ["Mesh_192_0_2_2", "Mesh_192_0_2_3"])
        host.put(BGPPeer(metadata=Metadata(name="bad"), spec=replace(bad, keepalive_time="20s")))
        wait_until("the peer", lambda: "Global_192_0_2_77" in sessions(bird))
        wait_until("the problem to go", lambda: Problems(host.run_dir).read() == {})
        wait_until("the metric", lambda: "calico_bird_left_out{" not in metrics(host))

    def test_password_that_comes_later(self, host: AgentHost, bird: birdlab.Host) -> None:
        """A peer without its password has no session; when the file is there, it has, without anyone's doing."""
        secrets = host.base / "secrets"
        host.settings["CALICO_SECRETS_DIR"] = str(secrets)
        password = BGPPassword(secret_key_ref=SecretKeyRef(name="bgp", key="tor"))
        spec = BGPPeerSpec(peer_ip="192.0.2.77", as_number=65001, password=password)
        host.put(BGPPeer(metadata=Metadata(name="tor"), spec=spec))
        host.started()
        conf = host.run_dir / "bird.conf"
        wait_until("the problem", lambda: "secret 'bgp' key 'tor'" in str(Problems(host.run_dir).read()))
        assert "192.0.2.77" not in conf.read_text()
        (secrets / "bgp").mkdir(parents=True)
        (secrets / "bgp" / "tor").write_text("s3cret\n")
        wait_until("the session", lambda: 'password "s3cret"' in conf.read_text(), 20)
        # It is told when BIRD's configuration is written.
        wait_until("the problem to go", lambda: Problems(host.run_dir).read() == {})
        assert conf.stat().st_mode & 0o077 == 0 and "s3cret" not in host.text()


def metrics(host: AgentHost) -> str:
    fetch = "import urllib.request;print(urllib.request.urlopen('http://127.0.0.1:9091/metrics').read().decode())"
    return host.run("python3", "-c", fetch, check=False)
