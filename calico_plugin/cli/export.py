"""`calicoctl datastore migrate export`: all of Calico in three parts, separated by lines of `===`.

First the resources as YAML (a List that `calicoctl apply -f` reads), then the cluster's information, then IPAM as JSON:
blocks, affinities and handles as they are stored, by their keys.
"""

from __future__ import annotations

import json
from typing import Any, Iterator

from calico_plugin.cli import objects, yamlout
from calico_plugin.cli.session import Session
from calico_plugin.errors import CalicoError
from calico_plugin.model import keys
from calico_plugin.model.resources import KINDS, ClusterInformation

SEPARATOR = "===\n"
_NOT_HERE = ("ClusterInformation", "CalicoNodeStatus")


class NotLocked(CalicoError):
    """What is read would not be of one moment."""


def parts(session: Session) -> Iterator[str]:
    """The text, part by part. Raises NotLocked."""
    stored = session.store.resources(ClusterInformation).get("default", session.deadline())
    if stored.value.spec.datastore_ready is not False:
        raise NotLocked("the datastore is not locked: run `calicoctl datastore migrate lock` first")
    items = [document for kind in KINDS if kind not in _NOT_HERE for document in _of_kind(session, kind)]
    yield yamlout.dump({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {}})
    yield SEPARATOR
    yield yamlout.dump(objects.shown(stored, export=True))
    yield SEPARATOR
    yield json.dumps(_ipam(session), indent=2) + "\n"


def _of_kind(session: Session, kind: str) -> Iterator[dict[str, Any]]:
    values = session.store.resources(KINDS[kind].type).list(session.deadline())
    if values.invalid:
        raise CalicoError("\n".join(f"{invalid.key} does not parse: {invalid.why}" for invalid in values.invalid))
    yield from (objects.shown(stored, export=True) for stored in values.items)


def _ipam(session: Session) -> dict[str, dict[str, Any]]:
    found = session.kv.list(keys.IPAM, session.deadline()).items
    return {
        name: {item.key: json.loads(item.value) for item in found if item.key.startswith(prefix)}
        for name, prefix in (
            ("ipamConfig", keys.IPAM_CONFIG),
            ("blocks", keys.BLOCKS),
            ("blockAffinities", keys.AFFINITIES),
            ("handles", keys.HANDLES),
        )
    }
