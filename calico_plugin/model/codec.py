"""Typed value <-> stored JSON bytes.

Unknown members of a stored object survive: `encode(value, over=document)` lays the typed members over the document that
was read. Bytes are those of Go's encoder: compact, struct order, maps sorted, `&`, `<`, `>` escaped (datamodel 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Generic, Mapping, Type, TypeVar

import msgspec

from calico_plugin.errors import CorruptValue
from calico_plugin.model import forms, schema
from calico_plugin.model.resources.kinds import KINDS
from calico_plugin.model.resources.meta import Form, Resource

T = TypeVar("T", bound=msgspec.Struct)

# "deterministic" sorts free maps and leaves structs in the order of their fields.
_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {}
_MAKING = Lock()
_NEVER_STORED = ("resourceVersion", "selfLink")


@dataclass(frozen=True, slots=True)
class Invalid:
    """A stored value that does not parse: treated as absent, loudly."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Stored(Generic[T]):
    """A value as read: its key, mod_revision, and the whole document with the members that we do not know."""

    key: str
    value: T
    revision: int
    document: Mapping[str, Any]


def decode(kind: Type[T], key: str, data: bytes) -> T:
    """Raises CorruptValue."""
    try:
        decoded: T = _decoder(kind).decode(data or b"{}")
        return decoded
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptValue(key, str(error)) from error


def _decoder(kind: Type[T]) -> msgspec.json.Decoder[T]:
    """Made by one thread at a time: where two make msgspec (0.22) look at a type for the first time at once, each may
    meet what the other has half done, and the process crashes.
    """
    found = _DECODERS.get(kind)
    if found is None:
        with _MAKING:
            found = _DECODERS[kind] = msgspec.json.Decoder(kind)
    return found


def decode_stored(kind: Type[T], key: str, data: bytes, revision: int) -> Stored[T]:
    """Raises CorruptValue."""
    return Stored(key, decode(kind, key, data), revision, msgspec.json.decode(data or b"{}"))


def encode(value: msgspec.Struct, over: Mapping[str, Any] | None = None) -> bytes:
    """Bytes of a value; unknown members of `over`, the document that was read, stay. No resourceVersion is written."""
    if over is None and _is_plain(type(value)):
        return _escape(_ENCODER.encode(value))
    node = _node(value)
    built = msgspec.to_builtins(value)
    if isinstance(value, Resource):
        for name in _NEVER_STORED:
            built.get("metadata", {}).pop(name, None)
    return _escape(msgspec.json.encode(ordered(node, _merge(node, built, over) if over else built)))


def ordered(node: schema.Node, document: Any) -> Any:
    """A document in Go's order: structures by their fields, maps by name, opaque parts as they stand."""
    if isinstance(node, schema.Members) and isinstance(document, Mapping):
        known = {name: ordered(part, document[name]) for name, part in node.fields.items() if name in document}
        return known | {name: part for name, part in document.items() if name not in known}
    if isinstance(node, schema.MapOf) and isinstance(document, Mapping):
        return {name: ordered(node.value, document[name]) for name in sorted(document)}
    if isinstance(node, schema.ListOf) and isinstance(document, (list, tuple)):
        return [ordered(node.item, item) for item in document]
    if isinstance(node, Form) and node.name == "number" and isinstance(document, float):
        return forms.number(document)
    return document


def _node(value: msgspec.Struct) -> schema.Members:
    """Schema of a value: by kind for resources, whose open parts have an order too."""
    if isinstance(value, Resource) and value.kind in KINDS:
        return schema.of_kind(value.kind)
    return schema.members(type(value))


@lru_cache(maxsize=None)
def _is_plain(struct: Type[msgspec.Struct]) -> bool:
    """True when the encoder's own order is Go's: nothing in it is opaque, or a number that might get a point."""
    return not issubclass(struct, Resource) and _plain(schema.members(struct))


def _plain(node: schema.Node) -> bool:
    if isinstance(node, Form):
        return node.name not in ("any", "number")
    if isinstance(node, schema.ListOf):
        return _plain(node.item)
    if isinstance(node, schema.MapOf):
        return _plain(node.value)
    return all(_plain(part) for part in node.fields.values())


def _escape(data: bytes) -> bytes:
    # These never occur outside strings in JSON; Go escapes the two line separators as well.
    data = data.replace(b"&", b"\\u0026").replace(b"<", b"\\u003c").replace(b">", b"\\u003e")
    return data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


def _merge(node: schema.Node, built: Any, over: Any) -> Any:
    """Typed members win, also by their absence; what the type does not know is kept."""
    if isinstance(node, schema.Members) and isinstance(built, Mapping) and isinstance(over, Mapping):
        merged = {
            name: _merge(node.fields[name], part, over.get(name)) if name in node.fields else part
            for name, part in built.items()
        }
        return merged | {name: part for name, part in over.items() if name not in node.fields and name not in merged}
    if isinstance(node, schema.ListOf) and isinstance(node.item, schema.Members) and isinstance(over, list):
        return [
            _merge_item(node.item, part, over[index] if index < len(over) else None) for index, part in enumerate(built)
        ]
    return built


def _merge_item(node: schema.Members, built: Any, over: Any) -> Any:
    """An item of a list keeps its unknown members only while it is the same item at the same place."""
    if isinstance(over, Mapping) and _bare({name: part for name, part in over.items() if name in node.fields}) == _bare(
        built
    ):
        return _merge(node, built, over)
    return built


def _bare(document: Any) -> Any:
    """A document without its empty members, which a writer may leave out or not."""
    if isinstance(document, Mapping):
        parts = {name: _bare(part) for name, part in document.items()}
        return {name: part for name, part in parts.items() if part not in (None, "", False, {}, [])}
    if isinstance(document, (list, tuple)):
        return [_bare(part) for part in document]
    return document
