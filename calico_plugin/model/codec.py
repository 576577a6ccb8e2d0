"""Typed value <-> stored JSON bytes.

Unknown members of a stored object survive: `encode(value, over=document)` lays the typed members over the document that was read.
Bytes are those of Go's encoder: compact, struct order, maps sorted, `&`, `<`, `>` escaped (datamodel 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Mapping, Type, TypeVar

import msgspec

from calico_plugin.errors import CorruptValue

T = TypeVar("T", bound=msgspec.Struct)


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
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptValue(key, str(error)) from error


def decode_stored(kind: Type[T], key: str, data: bytes, revision: int) -> Stored[T]:
    """Raises CorruptValue."""
    return Stored(key, decode(kind, key, data), revision, msgspec.json.decode(data or b"{}"))


def encode(value: msgspec.Struct, over: Mapping[str, Any] | None = None) -> bytes:
    """Bytes of a value; `over` is the document that was read, whose unknown members stay."""
    built = msgspec.to_builtins(value)
    document = _merge(built, over, value) if over else built
    return _escape(msgspec.json.encode(_sorted_maps(document, value)))


def _escape(data: bytes) -> bytes:
    # These three never occur outside strings in JSON.
    return data.replace(b"&", b"\\u0026").replace(b"<", b"\\u003c").replace(b">", b"\\u003e")


def _members(value: msgspec.Struct) -> dict[str, str]:
    """JSON name -> attribute name."""
    return dict(zip(value.__struct_encode_fields__, value.__struct_fields__))


def _merge(built: dict[str, Any], over: Mapping[str, Any], value: msgspec.Struct) -> dict[str, Any]:
    """Typed members win, also by their absence; what the type does not know is kept."""
    members = _members(value)
    merged = {name: _merge_member(part, over.get(name), getattr(value, members[name])) for name, part in built.items()}
    merged.update((name, part) for name, part in over.items() if name not in members)
    return merged


def _merge_member(built: Any, over: Any, value: Any) -> Any:
    if isinstance(value, msgspec.Struct) and isinstance(over, Mapping):
        return _merge(built, over, value)
    if isinstance(value, tuple) and isinstance(over, list):
        return [_merge_item(part, over, index, value[index]) for index, part in enumerate(built)]
    return built


def _merge_item(built: Any, over: list[Any], index: int, value: Any) -> Any:
    """An item of a list keeps its unknown members only while it is the same item at the same place."""
    if not isinstance(value, msgspec.Struct) or index >= len(over):
        return built
    try:
        same = msgspec.convert(over[index], type(value)) == value
    except msgspec.ValidationError:
        same = False
    return _merge_member(built, over[index], value) if same else built


def _sorted_maps(document: Any, value: Any) -> Any:
    """Struct members keep their order, free maps are sorted as Go does."""
    if isinstance(value, msgspec.Struct):
        members = _members(value)
        return {
            name: _sorted_maps(part, getattr(value, members[name])) if name in members else part
            for name, part in document.items()
        }
    if isinstance(document, dict):
        return {name: _sorted_maps(document[name], None) for name in sorted(document)}
    if isinstance(document, (list, tuple)):
        values = value if isinstance(value, tuple) and len(value) == len(document) else [None] * len(document)
        return [_sorted_maps(part, item) for part, item in zip(document, values)]
    return document
