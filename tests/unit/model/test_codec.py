"""Stored values are read and written back byte for byte (resources.json), and what we do not know survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calico_plugin.errors import CorruptValue
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import Block
from calico_plugin.model.resources import KINDS, IPPool, Metadata

GOLDEN = json.loads((Path(__file__).parents[2] / "data/golden/resources.json").read_text())
STORED = [(f"{entry['name']} {key}", key, value) for entry in GOLDEN for key, value in entry["etcd"].items()]


def go_bytes(value: Any) -> bytes:
    """The original bytes of a golden value (README of the golden data)."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").encode()


@pytest.mark.parametrize(("key", "value"), [case[1:] for case in STORED], ids=[case[0] for case in STORED])
def test_written_back_the_same(key: str, value: Any) -> None:
    """A value of the original is read and written back as the same bytes, with and without the document that was
    read.
    """
    data = go_bytes(value)
    named = keys.parse_resource(key)
    assert named
    stored = codec.decode_stored(KINDS[named.kind].type, key, data, 7)
    assert codec.encode(stored.value) == data
    assert codec.encode(stored.value, stored.document) == data


def test_unknown_members_survive() -> None:
    """Members that the type does not know stay when an object is written back, in lists while the item is the same."""
    document = {
        "kind": "GlobalNetworkPolicy",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "p", "odd": 1},
        "spec": {"ingress": [{"action": "Allow", "new": True}, {"action": "Deny", "new": True}], "later": {"x": 1}},
        "extra": [1],
    }
    stored = codec.decode_stored(KINDS["GlobalNetworkPolicy"].type, "k", go_bytes(document), 1)
    changed = json.loads(codec.encode(stored.value, stored.document))
    assert changed == document


def test_typed_members_win_by_absence() -> None:
    """A known member that the new value lacks is gone, although the old document has it."""
    old = {"spec": {"cidr": "10.0.0.0/8", "natOutgoing": True, "odd": 1}, "metadata": {"labels": {"a": "b"}}}
    written = json.loads(codec.encode(IPPool(), old))
    assert written["spec"] == {"odd": 1}
    assert written["metadata"] == {}


def test_resource_version_is_never_stored() -> None:
    """resourceVersion comes from etcd and is not written."""
    assert b"resourceVersion" not in codec.encode(IPPool(metadata=Metadata(name="p", resource_version="7")))


def test_maps_are_sorted_and_specials_escaped() -> None:
    """Maps are sorted as text, and &, <, > are written as Go's encoder writes them."""
    pool = IPPool(metadata=Metadata(name="p", labels={"b": "1", "a": "2"}, annotations={"n": "<&>"}))
    assert b'"labels":{"a":"2","b":"1"},"annotations":{"n":"\\u003c\\u0026\\u003e"}' in codec.encode(pool)


def test_corrupt_value_names_its_key() -> None:
    """What does not parse is reported with its key."""
    with pytest.raises(CorruptValue, match="/calico/x"):
        codec.decode(Block, "/calico/x", b"{")
