"""What the watch tells becomes typed changes."""

from __future__ import annotations

from calico_plugin.agent.view import AffinityUpdate, ResourceUpdate, View
from calico_plugin.datastore.kv import Change, KeyValue
from calico_plugin.datastore.watch import Changes, Listed
from calico_plugin.model import codec, keys
from calico_plugin.model.codec import Invalid
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import Metadata, Profile

P = ResourceKey("Profile", "p")
KEY = keys.resource("Profile", "p")


def item(key: str, value: bytes, revision: int) -> KeyValue:
    return KeyValue(key, value, revision, 1)


def profile(**labels: str) -> Profile:
    return Profile(metadata=Metadata(name="p", labels=labels))


def listed(*items: KeyValue, revision: int = 9) -> Listed:
    return Listed({keys.RESOURCES: items}, revision)


def put(key: str, value: bytes, revision: int) -> Changes:
    return Changes((Change(key, item(key, value, revision), revision),))


def test_a_new_listing_tells_only_what_is_new() -> None:
    """After a compaction the same content comes again: nothing is told twice, and what vanished is told."""
    view = View()
    first = item(KEY, codec.encode(profile()), 3)
    other = item(keys.resource("Profile", "q"), codec.encode(Profile(metadata=Metadata(name="q"))), 4)
    assert [type(one) for one in view.listed(listed(first, other))] == [ResourceUpdate, ResourceUpdate]
    assert view.listed(listed(first, other)) == []
    (gone,) = view.listed(listed(first))
    assert isinstance(gone, ResourceUpdate) and gone.key.name == "q" and gone.new is None
    assert list(view.kind("Profile")) == [P]


def test_old_and_new_are_told() -> None:
    """A change carries what was there before."""
    view = View()
    view.listed(listed(item(KEY, codec.encode(profile()), 3)))
    (update,) = view.changed(put(KEY, codec.encode(profile(a="b")), 10))
    assert update == ResourceUpdate(P, profile(), profile(a="b"))
    assert view.snapshot(("Profile",)).kind("Profile") == {P: profile(a="b")}


def test_what_does_not_parse_is_absent_and_told() -> None:
    """It is told as Invalid, counts as absent, and is forgotten when it is put right."""
    view = View()
    view.listed(listed(item(KEY, codec.encode(profile()), 3)))
    (update,) = view.changed(put(KEY, b'{"metadata": 5}', 10))
    assert isinstance(update, ResourceUpdate) and isinstance(update.new, Invalid)
    assert view.kind("Profile") == {} and list(view.invalid) == [KEY]
    view.changed(put(KEY, codec.encode(profile()), 11))
    assert view.invalid == {} and list(view.kind("Profile")) == [P]


def test_affinities() -> None:
    """An affinity of this host is in the snapshot; its update names it."""
    view = View()
    key = keys.affinity("h", "10.0.0.0/26")
    assert view.changed(put(key, b'{"state":"confirmed","deleted":false}', 5)) == [AffinityUpdate(("h", "10.0.0.0/26"))]
    assert view.snapshot(()).affinities[("h", "10.0.0.0/26")].state == "confirmed"
    view.changed(Changes((Change(key, None, 6),)))
    assert view.snapshot(()).affinities == {}


def test_keys_that_are_none_of_ours_are_passed_over() -> None:
    """An unknown plural or a foreign key changes nothing."""
    view = View()
    assert view.changed(put(keys.RESOURCES + "sometimes/x", b"{}", 5)) == []
