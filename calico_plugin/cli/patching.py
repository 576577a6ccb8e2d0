"""The three ways to describe a change of a document. Pure.

* `merge`: RFC 7396. Members are merged, null removes one, lists are replaced as a whole.
* `strategic`: as merge, with Kubernetes' directives: `$patch: replace` or `delete` in a map, `$retainKeys`,
  `$deleteFromPrimitiveList/…`; of Calico's lists only `metadata.finalizers` (a set) and `metadata.ownerReferences` (by
  uid) are merged, all others are replaced: Calico's types name no merge key.
* `json`: RFC 6902. A list of operations: add, remove, replace, move, copy, test; `replace` of an absent member adds it.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Mapping, Sequence

from calico_plugin.errors import InvalidInput

TYPES = ("json", "merge", "strategic")
_DIRECTIVE, _RETAIN = "$patch", "$retainKeys"
_DELETE_FROM, _ORDER = "$deleteFromPrimitiveList/", "$setElementOrder/"
# Path of a list that strategic merge merges -> the member that tells its items apart (none: the items are words).
_MERGED_LISTS: dict[tuple[str, ...], str] = {("metadata", "finalizers"): "", ("metadata", "ownerReferences"): "uid"}
_END = "-"


def apply(form: str, document: Mapping[str, Any], change: Any) -> dict[str, Any]:
    """The changed document. Raises InvalidInput for a change that does not fit it."""
    whole = copy.deepcopy(dict(document))
    if form == "json":
        return _json(whole, change)
    _need_map(change)
    changed = merge(whole, change) if form == "merge" else _strategic(whole, change, ())
    if not isinstance(changed, dict):
        raise InvalidInput("--patch", None, "would delete the whole object; use calicoctl delete")
    return changed


def _need_map(change: Any) -> None:
    if not isinstance(change, Mapping):
        raise InvalidInput("--patch", change, "must be a JSON object with the members to change")


# -- RFC 7396 ---------------------------------------------------------------------------------------------------------
def merge(document: Any, change: Any) -> Any:
    """A document with the members of the change."""
    if not isinstance(change, Mapping):
        return change
    merged = dict(document) if isinstance(document, Mapping) else {}
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


# -- strategic --------------------------------------------------------------------------------------------------------
def _strategic(document: Any, change: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(change, Mapping):
        return change
    directive = change.get(_DIRECTIVE, "merge")
    rest = {name: value for name, value in change.items() if not name.startswith("$") or "/" in name}
    if directive == "delete":
        return None
    if directive == "replace":
        return merge({}, rest)
    if directive != "merge":
        raise InvalidInput("--patch", {_DIRECTIVE: directive}, "must be merge, replace or delete")
    merged = dict(document) if isinstance(document, Mapping) else {}
    _strategic_members(merged, rest, path)
    if _RETAIN in change:
        return {name: value for name, value in merged.items() if name in change[_RETAIN]}
    return merged


def _strategic_members(merged: dict[str, Any], change: Mapping[str, Any], path: tuple[str, ...]) -> None:
    for name, value in change.items():
        if name.startswith(_DELETE_FROM):
            target = name.removeprefix(_DELETE_FROM)
            merged[target] = [item for item in merged.get(target) or [] if item not in value]
        elif name.startswith(_ORDER):
            continue  # no list of ours has an order that a merge could spoil
        elif value is None:
            merged.pop(name, None)
        elif isinstance(value, list):
            merged[name] = _strategic_list(merged.get(name), value, (*path, name))
        else:
            changed = _strategic(merged.get(name), value, (*path, name))
            if changed is None:
                merged.pop(name, None)
            else:
                merged[name] = changed


def _strategic_list(current: Any, change: Sequence[Any], path: tuple[str, ...]) -> list[Any]:
    directives = [item for item in change if isinstance(item, Mapping) and _DIRECTIVE in item]
    replaced = {_DIRECTIVE: "replace"} in directives
    items = [item for item in change if item != {_DIRECTIVE: "replace"}]
    if path not in _MERGED_LISTS or replaced or not isinstance(current, list):
        return [item for item in items if item not in directives]
    key = _MERGED_LISTS[path]
    if not key:
        return current + [item for item in items if item not in current]
    return _merged_by(key, current, items)


def _merged_by(key: str, current: list[Any], items: Sequence[Any]) -> list[Any]:
    changes = {item.get(key): item for item in items if isinstance(item, Mapping)}
    kept = [_strategic(item, changes.pop(item.get(key)), ()) if item.get(key) in changes else item for item in current]
    new = [_strategic({}, item, ()) for item in changes.values()]
    return [item for item in (*kept, *new) if item is not None]


# -- RFC 6902 ---------------------------------------------------------------------------------------------------------
def _json(document: Any, operations: Any) -> dict[str, Any]:
    if not isinstance(operations, list):
        hint = 'must be a list of operations, such as [{"op": "replace", "path": "/spec/disabled", "value": true}]'
        raise InvalidInput("--patch", operations, hint)
    for index, operation in enumerate(operations):
        where = f"--patch[{index}]"
        if not isinstance(operation, Mapping) or operation.get("op") not in _OPERATIONS:
            given = operation.get("op") if isinstance(operation, Mapping) else operation
            raise InvalidInput(f"{where}.op", given, f"must be one of {', '.join(sorted(_OPERATIONS))}")
        document = _OPERATIONS[operation["op"]](document, operation, where)
    if not isinstance(document, dict):
        raise InvalidInput("--patch", None, "leaves no object")
    return document


def _pointer(operation: Mapping[str, Any], member: str, where: str) -> list[str]:
    """The steps of a JSON pointer (RFC 6901)."""
    text = operation.get(member)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise InvalidInput(f"{where}.{member}", text, "must be a path such as /spec/disabled")
    return [step.replace("~1", "/").replace("~0", "~") for step in text.split("/")[1:]]


def _value(operation: Mapping[str, Any], where: str) -> Any:
    if "value" not in operation:
        raise InvalidInput(f"{where}.value", None, "must be given")
    return copy.deepcopy(operation["value"])


def _find(document: Any, steps: Sequence[str], where: str) -> Any:
    for index, step in enumerate(steps):
        document = _child(document, step, f"{where}: /{'/'.join(steps[: index + 1])}")
    return document


def _child(container: Any, step: str, where: str) -> Any:
    if isinstance(container, list):
        return container[_index(step, len(container) - 1, where)]
    if not isinstance(container, dict) or step not in container:
        raise InvalidInput(where, None, "does not exist in the object")
    return container[step]


def _index(step: str, last: int, where: str) -> int:
    if not step.isdigit() or (step != "0" and step.startswith("0")) or int(step) > last:
        raise InvalidInput(where, step, f"must be a place in the list: 0 to {last}")
    return int(step)


def _put(document: Any, steps: Sequence[str], value: Any, where: str) -> Any:
    if not steps:
        return value
    container, step = _find(document, steps[:-1], where), steps[-1]
    place = f"{where}: /{'/'.join(steps)}"
    if isinstance(container, list):
        container.insert(len(container) if step == _END else _index(step, len(container), place), value)
    elif isinstance(container, dict):
        container[step] = value
    else:
        raise InvalidInput(place, None, "is inside of something that has no members")
    return document


def _take(document: Any, steps: Sequence[str], where: str) -> Any:
    """The value at a place, taken out."""
    if not steps:
        raise InvalidInput(where, None, "the whole object cannot be removed")
    container = _find(document, steps[:-1], where)
    found = _child(container, steps[-1], f"{where}: /{'/'.join(steps)}")
    if isinstance(container, list):
        container.pop(int(steps[-1]))
    else:
        del container[steps[-1]]
    return found


def _add(document: Any, operation: Mapping[str, Any], where: str) -> Any:
    return _put(document, _pointer(operation, "path", where), _value(operation, where), f"{where}.path")


def _remove(document: Any, operation: Mapping[str, Any], where: str) -> Any:
    _take(document, _pointer(operation, "path", where), f"{where}.path")
    return document


def _replace(document: Any, operation: Mapping[str, Any], where: str) -> Any:
    steps, value = _pointer(operation, "path", where), _value(operation, where)
    # A member that has its default is not stored, yet it is there for a user: replacing it is right (RFC 6902 is not
    # about documents with defaults).
    if steps and not (isinstance(parent := _find(document, steps[:-1], where), dict) and steps[-1] not in parent):
        _take(document, steps, f"{where}.path")
    return _put(document, steps, value, f"{where}.path")


def _copy(document: Any, operation: Mapping[str, Any], where: str) -> Any:
    found = _find(document, _pointer(operation, "from", where), f"{where}.from")
    return _put(document, _pointer(operation, "path", where), copy.deepcopy(found), f"{where}.path")


def _move(document: Any, operation: Mapping[str, Any], where: str) -> Any:
    source, target = _pointer(operation, "from", where), _pointer(operation, "path", where)
    if target[: len(source)] == source and target != source:
        raise InvalidInput(f"{where}.path", operation.get("path"), "is inside of what would be moved")
    return _put(document, target, _take(document, source, f"{where}.from"), f"{where}.path")


def _test(document: Any, operation: Mapping[str, Any], where: str) -> Any:
    found = _find(document, _pointer(operation, "path", where), f"{where}.path")
    wanted = _value(operation, where)
    if found != wanted or isinstance(found, bool) != isinstance(wanted, bool):
        raise InvalidInput(f"{where}.value", wanted, f"the object has {found!r} there: nothing was changed")
    return document


_OPERATIONS: dict[str, Callable[[Any, Mapping[str, Any], str], Any]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}
