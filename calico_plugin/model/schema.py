"""What a manifest may hold, derived from the resource types: names in order, and the form of each value.

`shape` turns a document as read from YAML or JSON into the stored form: canonical names (any case is accepted),
canonical values, members in the order of the Go encoder; and it reports everything that does not fit, with its exact
path.
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Mapping, Type, Union

import msgspec

from calico_plugin.model import forms
from calico_plugin.model.problem import Problem, did_you_mean, member
from calico_plugin.model.resources import felix
from calico_plugin.model.resources.kinds import KINDS
from calico_plugin.model.resources.meta import Form


@dataclass(frozen=True, slots=True)
class ListOf:
    item: Node


@dataclass(frozen=True, slots=True)
class MapOf:
    value: Node


@dataclass(frozen=True, slots=True)
class Members:
    """A structure; `fields` are in the order in which they are written."""

    fields: Mapping[str, Node]


Node = Union[Form, ListOf, MapOf, Members]

_PLAIN: dict[Any, Form] = {
    str: Form("text"),
    int: Form("integer"),
    bool: Form("boolean"),
    float: Form("number"),
    Any: Form("any"),
    object: Form("any"),
}
_STAGED_KUBERNETES = Members(
    {
        "stagedAction": Form("text", ("Set", "Delete", "Learn", "Ignore")),
        "podSelector": Form("any"),
        "ingress": Form("any"),
        "egress": Form("any"),
        "policyTypes": Form("any"),
    }
)
_OPEN: dict[tuple[str, str], Node] = {
    ("FelixConfiguration", "spec"): Members(felix.FIELDS),
    ("StagedKubernetesNetworkPolicy", "spec"): _STAGED_KUBERNETES,
}
# Only global policies have these (datamodel 2.6); the types share one PolicySpec.
_GLOBAL_ONLY = ("doNotTrack", "preDNAT", "applyOnForward", "namespaceSelector")
_STAGED_ONLY = ("stagedAction",)


@lru_cache(maxsize=None)
def members(struct: Type[msgspec.Struct]) -> Members:
    """Schema of a structure type."""
    hints = typing.get_type_hints(struct, include_extras=True)
    names = zip(struct.__struct_encode_fields__, struct.__struct_fields__)
    return Members({name: _node(hints[attribute]) for name, attribute in names})


@lru_cache(maxsize=None)
def of_kind(kind: str) -> Members:
    """Schema of a kind, as far as a manifest may set it."""
    fields = dict(members(KINDS[kind].type).fields)
    for (owner, name), node in _OPEN.items():
        if owner == kind:
            fields[name] = node
    if kind.endswith("NetworkPolicy") and isinstance(fields["spec"], Members) and (kind, "spec") not in _OPEN:
        unknown = (() if kind.startswith("Staged") else _STAGED_ONLY) + (() if "Global" in kind else _GLOBAL_ONLY)
        fields["spec"] = Members({name: node for name, node in fields["spec"].fields.items() if name not in unknown})
    return Members(fields)


def _node(hint: Any) -> Node:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return next(extra for extra in arguments[1:] if isinstance(extra, Form))
    if origin in (Union, types.UnionType):
        rest = [part for part in arguments if part not in (type(None), msgspec.UnsetType)]
        return _node(rest[0]) if len(rest) == 1 else Form("number" if set(rest) == {int, float} else "any")
    if origin is tuple:
        return ListOf(_node(arguments[0]))
    if origin is dict:
        return Form("any") if arguments[1] is Any else MapOf(_node(arguments[1]))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return members(hint)
    return _PLAIN[hint]


def shape(document: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], tuple[Problem, ...]]:
    """The document in its stored form, and what did not fit (then the document is not to be used)."""
    return shape_as(of_kind(kind), document)


def shape_as(node: Members, document: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Problem, ...]]:
    """As `shape`, for any structure."""
    problems: list[Problem] = []
    shaped = _shape_members(node, document, "", problems)
    return shaped, tuple(problems)


def _shape(node: Node, value: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(node, Form):
        return _shape_form(node, value, path, problems)
    if isinstance(node, ListOf):
        return _shape_list(node, value, path, problems)
    if not isinstance(value, Mapping):
        problems.append(Problem(path, value, f"must be a map of members, not {_kind_of(value)}"))
        return None
    if isinstance(node, MapOf):
        return {str(name): _shape(node.value, item, member(path, str(name)), problems) for name, item in value.items()}
    return _shape_members(node, value, path, problems)


def _shape_list(node: ListOf, value: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, list):
        problems.append(Problem(path, value, f"must be a list; write [{value}] or start each entry with a dash"))
        return None
    return [_shape(node.item, item, f"{path}[{index}]", problems) for index, item in enumerate(value)]


def _shape_members(node: Members, value: Mapping[str, Any], path: str, problems: list[Problem]) -> dict[str, Any]:
    spelled = {name.lower(): name for name in node.fields}
    found: dict[str, Any] = {}
    for given, item in value.items():
        name = str(given) if str(given) in node.fields else spelled.get(str(given).lower())
        if name is None:
            problems.append(_unknown(node, str(given), path))
        elif name in found:
            problems.append(Problem(member(path, name), None, "is given twice, in different spellings"))
        elif item is not None:
            found[name] = _shape(node.fields[name], item, member(path, name), problems)
    return {name: found[name] for name in node.fields if name in found}


def _unknown(node: Members, name: str, path: str) -> Problem:
    """An unknown member: the nearest known name, or the place where it belongs."""
    hint = did_you_mean(name, node.fields)
    if not hint:
        inner = [outer for outer, part in node.fields.items() if isinstance(part, Members) and name in part.fields]
        hint = f"; it belongs under {inner[0]}" if inner else f"; known here: {', '.join(sorted(node.fields))}"
    return Problem(member(path, name), None, f"unknown field{hint}")


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list"}
    return next((name for known, name in names.items() if isinstance(value, known)), "a map")


def _shape_form(form: Form, value: Any, path: str, problems: list[Problem]) -> Any:
    try:
        shaped = _FORMS[form.name](value)
        _check_bounds(form, shaped)
    except ValueError as error:
        problems.append(Problem(path, value, str(error)))
        return None
    return shaped


def _check_bounds(form: Form, value: Any) -> None:
    if form.choices and str(value) not in form.choices and not (form.name == "text" and value == ""):
        if not (form.fold and str(value).lower() in (word.lower() for word in form.choices)):
            raise ValueError(f"must be {_one_of(form.choices)}{did_you_mean(str(value), form.choices)}")
    if form.low is not None and form.high is not None and not form.low <= value <= form.high:
        raise ValueError(f"must be from {form.low} to {form.high}")


def _one_of(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _text(value: Any) -> str:
    """Go's YAML reader turns a bare true, 1 or 1.5 into text where text is wanted (datamodel 2.1)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(forms.number(value))
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {_kind_of(value)}")
    return value


def _integer(value: Any) -> int:
    whole = forms.number(value) if isinstance(value, (int, float)) else value
    if isinstance(whole, bool) or not isinstance(whole, int):
        raise ValueError("must be a whole number" + (" without quotes" if isinstance(value, str) else ""))
    return whole


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a number" + (" without quotes" if isinstance(value, str) else ""))
    return forms.number(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false" + (" without quotes" if isinstance(value, str) else ""))
    return value


_FORMS: dict[str, typing.Callable[[Any], Any]] = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "any": lambda value: value,
    "duration": forms.duration,
    "port": forms.port,
    "protocol": forms.protocol,
    "asNumber": forms.as_number,
}
