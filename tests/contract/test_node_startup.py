"""calico-node's writes on a real etcd."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from calico_plugin.config import Settings
from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import Conflict
from calico_plugin.model import keys
from calico_plugin.model.resources import BGPConfiguration, ClusterInformation, FelixConfiguration, IPPool, Node
from calico_plugin.node.interfaces import Interface
from calico_plugin.node.startup import HostView, keep_name, prepare


def host(address: str) -> HostView:
    return HostView((Interface(2, "eth0", True, False, (address,)),), lambda destination, version: None)


def settings(tmp_path: Path, name: str, **environ: str) -> Settings:
    return Settings.checked({"NODENAME": name, "CALICO_LIB_DIR": str(tmp_path), **environ})


def test_virgin_datastore(kv: EtcdKV, tmp_path: Path) -> None:
    """A first start leaves Calico's objects; a second one changes no key."""
    store = Store(kv)
    prepare(settings(tmp_path, "a", AS="64600"), store, host("10.0.0.5/24"))
    node = store.resources(Node).get("a", Deadline(5)).value
    assert node.spec.bgp and (node.spec.bgp.ipv4_address, node.spec.bgp.as_number) == ("10.0.0.5/24", 64600)
    pools = {one.value.name: one.value.spec for one in store.resources(IPPool).list(Deadline(5)).items}
    assert pools["default-ipv4-ippool"].cidr == "192.168.0.0/16" and pools["default-ipv4-ippool"].nat_outgoing
    assert pools["default-ipv6-ippool"].cidr.startswith("fd") and pools["default-ipv6-ippool"].cidr.endswith("/48")
    info = store.resources(ClusterInformation).get("default", Deadline(5)).value.spec
    assert len(info.cluster_guid) == 32 and info.datastore_ready and info.calico_version == ""
    felix = store.resources(FelixConfiguration)
    assert felix.get("node.a", Deadline(5)).value.spec["defaultEndpointToHostAction"] == "Return"
    store.resources(BGPConfiguration).get("default", Deadline(5))

    before = kv.list(keys.ROOT, Deadline(5)).items
    prepare(settings(tmp_path, "a", AS="64600"), store, host("10.0.0.5/24"))
    assert kv.list(keys.ROOT, Deadline(5)).items == before


def test_what_a_user_changed_stays(kv: EtcdKV, tmp_path: Path) -> None:
    """A locked datastore stays locked, a deleted pool stays away when another of its family is there, AS is kept."""
    store = Store(kv)
    first = settings(tmp_path, "a", AS="64600", CALICO_IPV4POOL_CIDR="10.5.0.0/16", CALICO_IPV6POOL_CIDR="none")
    prepare(first, store, host("10.0.0.5/24"))
    prepare(settings(tmp_path, "a", CLUSTER_TYPE="mine,docker"), store, host("10.0.0.5/24"))
    node = store.resources(Node).get("a", Deadline(5)).value
    assert node.spec.bgp and node.spec.bgp.as_number == 64600
    assert store.resources(IPPool).get("default-ipv4-ippool", Deadline(5)).value.spec.cidr == "10.5.0.0/16"
    assert store.resources(ClusterInformation).get("default", Deadline(5)).value.spec.cluster_type == "docker,bgp,mine"


def test_no_pools_and_policy_only(kv: EtcdKV, tmp_path: Path) -> None:
    """NO_DEFAULT_POOLS makes none; backend `none` writes no BGP data at all, not even an empty object."""
    store = Store(kv)
    environ = {"NO_DEFAULT_POOLS": "true", "CALICO_NETWORKING_BACKEND": "none"}
    prepare(settings(tmp_path, "a", **environ), store, host("10.0.0.5/24"))
    assert not store.resources(IPPool).list(Deadline(5)).items
    assert store.resources(Node).get("a", Deadline(5)).document["spec"] == {}


def test_two_nodes_with_one_address(kv: EtcdKV, tmp_path: Path) -> None:
    """The second one is refused and writes no Node; DISABLE_NODE_IP_CHECK lets it in."""
    store = Store(kv)
    prepare(settings(tmp_path, "a"), store, host("10.0.0.5/24"))
    with pytest.raises(Conflict, match="'a' is already using"):
        prepare(settings(tmp_path, "b"), store, host("10.0.0.5/16"))
    assert store.resources(Node).find("b", Deadline(5)) is None
    prepare(settings(tmp_path, "b", DISABLE_NODE_IP_CHECK="true"), store, host("10.0.0.5/16"))


def test_many_nodes_at_once(kv: EtcdKV, tmp_path: Path) -> None:
    """Eight first starts at the same time: all succeed, one cluster id, one pool of each family."""
    store = Store(kv)
    failures: list[BaseException] = []

    def start(number: int) -> None:
        try:
            prepare(settings(tmp_path, f"n{number}"), store, host(f"10.0.0.{number}/24"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(store.resources(Node).list(Deadline(5)).items) == 8
    assert len(store.resources(IPPool).list(Deadline(5)).items) == 2


def test_nodename_file(tmp_path: Path) -> None:
    """The name is written without a line break, and read back by the next start."""
    keep_name(settings(tmp_path, "a"))
    assert (tmp_path / "nodename").read_bytes() == b"a"
    assert Settings.from_env({"CALICO_LIB_DIR": str(tmp_path)}).node_name == "a"
