"""What all stored objects share (datamodel 2.1, 2.2).

Every type is a frozen msgspec struct whose fields stand in the order of the Go encoder and carry Calico's JSON names.
Empty optional members are left out when written, unknown ones are ignored here and kept by `codec` when an object is
written back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

API_VERSION = "projectcalico.org/v3"


@dataclass(frozen=True, slots=True)
class Form:
    """How a member is written, where its Python type does not say it; `schema` reads it, `msgspec` ignores it.

    `name` is one of: text, integer, number, boolean, duration, port, protocol, asNumber, any. `choices` are the words
    that are accepted; with `fold` in any case. `low`..`high` are the bounds of a number.
    """

    name: str
    choices: tuple[str, ...] = ()
    fold: bool = False
    low: int | None = None
    high: int | None = None


Duration = Annotated[str, Form("duration")]
ASNumber = Annotated[int | str, Form("asNumber")]
Port = Annotated[int | str, Form("port")]
Protocol = Annotated[int | str, Form("protocol")]


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel", gc=False):
    """Base of all nested values: members that equal their default are not written. The collector need not know of what
    is read from JSON: it has no cycles.
    """


class Metadata(Value, frozen=True, kw_only=True):
    """`resource_version` is never stored; on read it is the key's mod_revision in decimal."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    self_link: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[Any, ...] = ()
    finalizers: tuple[str, ...] = ()
    managed_fields: tuple[Any, ...] = ()


class Resource(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
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
