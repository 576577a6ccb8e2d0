"""Typed objects on every KV: what survives a change, what is never stored, and errors that name the object."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

import msgspec
import pytest

from calico_plugin.datastore.kv import KV
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, Conflict, CorruptValue, InvalidInput, NotFound
from calico_plugin.model import keys
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.ipam import DEFAULT_IPAM_CONFIG, Affinity
from calico_plugin.model.resources import KINDS, IPPool, Metadata, NetworkPolicy, Profile

Soon = Callable[[], Deadline]
GOLDEN = json.loads((Path(__file__).parents[1] / "data/golden/resources.json").read_text())
POOL_KEY = "/calico/resources/v3/projectcalico.org/ippools/web"


@pytest.fixture
def store(any_kv: KV) -> Store:
    return Store(any_kv, now=lambda: datetime(2026, 11, 25, 9, 0, 0, 999, timezone.utc), new_uid=lambda: "uid-1")


def pool(name: str = "web", **metadata: Any) -> IPPool:
    return IPPool(kind="IPPool", metadata=Metadata(name=name, **metadata))


def stored_json(kv: KV, key: str, soon: Soon) -> dict[str, Any]:
    item = kv.get(key, soon())
    assert item is not None
    return json.loads(item.value)


def test_create_sets_what_the_original_needs(store: Store, any_kv: KV, soon: Soon) -> None:
    """uid and creationTimestamp (whole seconds, UTC) are set, and what is returned is what is stored."""
    stored = store.resources(IPPool).create(pool(), soon())
    assert stored_json(any_kv, POOL_KEY, soon)["metadata"] == {
        "name": "web",
        "uid": "uid-1",
        "creationTimestamp": "2026-11-25T09:00:00Z",
    }
    assert store.resources(IPPool).get("web", soon()) == stored


def test_create_keeps_a_given_uid_and_refuses_a_version(store: Store, soon: Soon) -> None:
    """A restored object keeps its identity; a resourceVersion on create is an error, as with the original."""
    stored = store.resources(IPPool).create(pool(uid="given", creation_timestamp="2020-01-01T00:00:00Z"), soon())
    assert (stored.value.metadata.uid, stored.value.metadata.creation_timestamp) == ("given", "2020-01-01T00:00:00Z")
    with pytest.raises(InvalidInput, match="metadata.resourceVersion"):
        store.resources(IPPool).create(pool("other", resource_version="7"), soon())


def test_update_keeps_identity(store: Store, any_kv: KV, soon: Soon) -> None:
    """Whatever the new value says, uid and creationTimestamp stay; resourceVersion and selfLink are never stored."""
    pools = store.resources(IPPool)
    stored = pools.create(pool(), soon())
    changed = pool(
        uid="forged", creation_timestamp="1999-01-01T00:00:00Z", resource_version="5", self_link="/x", labels={"a": "b"}
    )
    updated = pools.update(stored, changed, soon())
    assert stored_json(any_kv, POOL_KEY, soon)["metadata"] == {
        "name": "web",
        "uid": "uid-1",
        "creationTimestamp": "2026-11-25T09:00:00Z",
        "labels": {"a": "b"},
    }
    assert updated.revision > stored.revision


def test_update_mends_an_object_without_identity(store: Store, any_kv: KV, soon: Soon) -> None:
    """The original cannot change an object without uid; after ours it can."""
    any_kv.put(POOL_KEY, b'{"kind":"IPPool","metadata":{"name":"web"},"spec":{"cidr":"10.0.0.0/16"}}', soon())
    stored = store.resources(IPPool).get("web", soon())
    store.resources(IPPool).update(stored, stored.value, soon())
    assert stored_json(any_kv, POOL_KEY, soon)["metadata"]["uid"] == "uid-1"


def test_unknown_members_survive(store: Store, any_kv: KV, soon: Soon) -> None:
    """What a newer Calico stored and we do not know is still there after our change."""
    document = {
        "kind": "IPPool",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "web", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "future": {"a": [1]}},
        "spec": {"cidr": "10.0.0.0/16", "futureField": "kept"},
        "futureTop": True,
    }
    any_kv.put(POOL_KEY, json.dumps(document).encode(), soon())
    stored = store.resources(IPPool).get("web", soon())
    changed = msgspec.structs.replace(stored.value, spec=msgspec.structs.replace(stored.value.spec, disabled=True))
    store.resources(IPPool).update(stored, changed, soon())
    document["spec"] = {"cidr": "10.0.0.0/16", "disabled": True, "futureField": "kept"}
    assert stored_json(any_kv, POOL_KEY, soon) == document


def test_two_editors(store: Store, soon: Soon) -> None:
    """The second of two editors gets a Conflict that names the object and both revisions, with what is stored now."""
    pools = store.resources(IPPool)
    mine = theirs = pools.create(pool(), soon())
    now = pools.update(theirs, pool(labels={"theirs": ""}), soon())
    with pytest.raises(Conflict) as caught:
        pools.update(mine, pool(labels={"mine": ""}), soon())
    text = str(caught.value)
    assert "IPPool(web)" in text and str(mine.revision) in text and str(now.revision) in text
    assert caught.value.current == now
    with pytest.raises(Conflict, match=r"IPPool\(web\)"):
        pools.delete("web", soon(), revision=mine.revision)


def test_errors_name_the_object(store: Store, soon: Soon) -> None:
    """NotFound and AlreadyExists say kind, namespace and name."""
    pools, policies = store.resources(IPPool), store.resources(NetworkPolicy)
    stored = pools.create(pool(), soon())
    with pytest.raises(AlreadyExists, match=r"IPPool\(web\)") as caught:
        pools.create(pool(), soon())
    assert caught.value.current == stored
    assert pools.delete("web", soon()) == stored
    with pytest.raises(NotFound, match=r"IPPool\(web\)"):
        pools.delete("web", soon())
    with pytest.raises(NotFound, match=r"IPPool\(web\)"):
        pools.update(stored, pool(), soon())
    with pytest.raises(NotFound, match=r"NetworkPolicy\(prod/default\.web\)"):
        policies.get("default.web", soon(), "prod")
    assert policies.find("default.web", soon(), "prod") is None


def test_rename_is_refused(store: Store, soon: Soon) -> None:
    """A change cannot give an object another name."""
    stored = store.resources(IPPool).create(pool(), soon())
    with pytest.raises(InvalidInput, match="metadata.name"):
        store.resources(IPPool).update(stored, pool("other"), soon())


def test_scope_must_fit(store: Store, soon: Soon) -> None:
    """A namespace for a cluster kind, or none for a namespaced one, is refused by field."""
    with pytest.raises(InvalidInput, match="metadata.namespace"):
        store.resources(IPPool).get("web", soon(), "prod")
    with pytest.raises(InvalidInput, match="metadata.namespace"):
        store.resources(NetworkPolicy).get("web", soon())


def test_list_with_a_value_that_does_not_parse(store: Store, any_kv: KV, soon: Soon) -> None:
    """One broken value hides no other; it is reported, and a get of it names the key."""
    store.resources(IPPool).create(pool(), soon())
    broken = "/calico/resources/v3/projectcalico.org/ippools/broken"
    any_kv.put(broken, b'{"kind": 5}', soon())
    listed = store.resources(IPPool).list(soon())
    assert [item.value.name for item in listed.items] == ["web"]
    assert [invalid.key for invalid in listed.invalid] == [broken]
    with pytest.raises(CorruptValue, match=broken):
        store.resources(IPPool).get("broken", soon())


def test_namespaced_lists(store: Store, soon: Soon) -> None:
    """With a namespace that one, without all."""
    policies = store.resources(NetworkPolicy)
    for namespace in ("a", "ab"):
        metadata = Metadata(name="default.p", namespace=namespace)
        policies.create(NetworkPolicy(kind="NetworkPolicy", metadata=metadata), soon())
    assert [item.value.namespace for item in policies.list(soon(), "a").items] == ["a"]
    assert [item.value.namespace for item in policies.list(soon()).items] == ["a", "ab"]


def test_several_objects_in_one_commit(store: Store, soon: Soon) -> None:
    """Planned changes go together or not at all; the error names the one that stood in the way."""
    profiles = store.resources(Profile)
    profile = Profile(kind="Profile", metadata=Metadata(name="net"))
    record = NetworkRecord(network_id="abc", name="net", profile="net")
    store.commit((store.networks.creation("abc", record), profiles.creation(profile)), soon())
    stored_record, stored_profile = store.networks.get("abc", soon()), profiles.get("net", soon())
    assert stored_record.value == record and stored_record.revision == stored_profile.revision
    profiles.update(stored_profile, profile, soon())
    removal = (store.networks.removal("abc", stored_record), profiles.removal(stored_profile))
    with pytest.raises(Conflict, match=r"Profile\(net\)"):
        store.commit(removal, soon())
    store.networks.get("abc", soon())
    store.commit((removal[0], profiles.removal(profiles.get("net", soon()))), soon())
    with pytest.raises(NotFound, match="network abc"):
        store.networks.get("abc", soon())


def test_other_families(store: Store, any_kv: KV, soon: Soon) -> None:
    """IPAM's values have the same verbs, under Calico's keys."""
    store.affinities.create("dock-a 10.50.7.64/26", Affinity(state="confirmed"), soon())
    item = any_kv.get("/calico/ipam/v2/host/dock-a/ipv4/block/10.50.7.64-26", soon())
    assert item is not None and item.value == b'{"state":"confirmed","deleted":false}'
    config = store.ipam_config.create("", DEFAULT_IPAM_CONFIG, soon())
    assert config.key == keys.IPAM_CONFIG
    store.ipam_config.update("", config, msgspec.structs.replace(config.value, strict_affinity=True), soon())
    assert store.ipam_config.get("", soon()).value.strict_affinity
    store.affinities.delete("dock-a 10.50.7.64/26", soon())
    with pytest.raises(NotFound, match="block affinity dock-a"):
        store.affinities.delete("dock-a 10.50.7.64/26", soon())


def test_golden_objects_survive_a_change_of_nothing(store: Store, any_kv: KV, soon: Soon) -> None:
    """All that the original tool has stored is read, written back, and is the same as before."""
    seen = 0
    for entry in GOLDEN:
        for key, document in entry["etcd"].items():
            parsed = keys.parse_resource(key)
            if parsed is None:
                continue
            any_kv.put(key, json.dumps(document).encode(), soon())
            family = store.resources(KINDS[parsed.kind].type)
            stored = family.get(parsed.name, soon(), parsed.namespace)
            family.update(stored, stored.value, soon())
            assert stored_json(any_kv, key, soon) == document, entry["name"]
            seen += 1
    assert seen > 50
