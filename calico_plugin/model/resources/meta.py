"""What all stored objects share (datamodel 2.1, 2.2).

Every type is a frozen msgspec struct whose fields stand in the order of the Go encoder and carry Calico's JSON names.
Empty optional members are left out when written, unknown ones are ignored here and kept by `codec` when an object is written back.
"""

from __future__ import annotations

from typing import Any

import msgspec

API_VERSION = "projectcalico.org/v3"


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Base of all nested values: members that equal their default are not written."""


class Metadata(Value, frozen=True, kw_only=True):
    """`resource_version` is never stored; on read it is the key's mod_revision in decimal."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[Any, ...] = ()
    finalizers: tuple[str, ...] = ()


class Resource(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of all v3 resources. `kind` and `api_version` are always written."""

    kind: str
    api_version: str = API_VERSION
    metadata: Metadata = Metadata()

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.labels

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind}({where})"
