"""The part of Go's text templates that people use with `calicoctl get -o go-template=` (node-and-cli 4.4).

Fields, `range`, `if`/`else if`/`else`, `with`, variables are left out; functions: index, len, printf, print, println,
eq, ne, lt, gt, and, or, not, join, joinAndTruncate. Field names are Go's or the manifest's, in any case; `ObjectMeta`
is `metadata`. Source: Go's text/template documentation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Mapping, Sequence, Union

from calico_plugin.errors import InvalidInput

_ACTION = re.compile(r"(\{\{-?\s*)(.*?)(\s*-?\}\})", re.DOTALL)
_TOKEN = re.compile(
    r'\s*(?:("(?:[^"\\]|\\.)*"|`[^`]*`)|(-?\d+(?:\.\d+)?)|([()|])|((?:\.[A-Za-z_]\w*)+|\.)|([A-Za-z_]\w*))'
)
_ALIASES = {"objectmeta": "metadata", "typemeta": "."}


@dataclass(frozen=True)
class _Text:
    text: str


@dataclass(frozen=True)
class _Print:
    expression: Sequence[Any]


@dataclass(frozen=True)
class _Scope:
    """`range`, `with` or `if`: the branch for a value, and the one for none."""

    word: str
    expression: Sequence[Any]
    body: tuple[_Node, ...]
    otherwise: tuple[_Node, ...]


_Node = Union[_Text, _Print, _Scope]


def render(template: str, data: Any) -> str:
    """Raises InvalidInput when the template is not right."""
    pieces = list(_pieces(template))
    nodes, rest = _parse(pieces, 0, ())
    if rest != len(pieces):
        raise _error(f"unexpected {{{{{pieces[rest][1]}}}}}")
    return "".join(_run(nodes, data))


def _error(why: str) -> InvalidInput:
    return InvalidInput("go-template", None, why)


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    position, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip() if trim else text
        yield "text", text.rstrip() if match[1].startswith("{{-") else text
        if not match[2].startswith("/*"):
            yield "action", match[2].strip()
        trim = match[3].endswith("-}}")
        position = match.end()
    rest = template[position:]
    if "{{" in rest:
        raise _error("an action is not closed with }}")
    yield "text", rest.lstrip() if trim else rest


def _parse(pieces: list[tuple[str, str]], position: int, ends: tuple[str, ...]) -> tuple[tuple[_Node, ...], int]:
    """Nodes up to one of the words in `ends`, which is not taken."""
    nodes: list[_Node] = []
    while position < len(pieces):
        kind, text = pieces[position]
        word = (text.split(None, 1) or [""])[0]
        if kind == "text":
            nodes.append(_Text(text))
            position += 1
        elif word in ("range", "with", "if"):
            scope, position = _parse_scope(pieces, position, word, text[len(word) :])
            nodes.append(scope)
        elif word in ("else", "end"):
            break
        else:
            nodes.append(_Print(_expression(text)))
            position += 1
    if ends and position == len(pieces):
        raise _error(f"{{{{{ends[-1]}}}}} is missing")
    return tuple(nodes), position


def _parse_scope(pieces: list[tuple[str, str]], position: int, word: str, condition: str) -> tuple[_Scope, int]:
    expression = _expression(condition)
    body, position = _parse(pieces, position + 1, ("else", "end"))
    otherwise: tuple[_Node, ...] = ()
    text = pieces[position][1]
    if text.startswith("else if "):
        inner, position = _parse_scope(pieces, position, "if", text[len("else if") :])
        return _Scope(word, expression, body, (inner,)), position
    if text == "else":
        otherwise, position = _parse(pieces, position + 1, ("end",))
    return _Scope(word, expression, body, otherwise), position + 1


def _expression(text: str) -> list[Any]:
    """Tokens of a pipeline, checked by a first reading."""
    tokens: list[str] = []
    position = 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if not match:
            raise _error(f"cannot read {text.strip()!r}")
        tokens.append(next(group for group in match.groups() if group is not None))
        position = match.end()
    if not tokens:
        raise _error("an expression is missing")
    return tokens


def _run(nodes: Sequence[_Node], data: Any) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, _Text):
            yield node.text
        elif isinstance(node, _Print):
            yield _printed(_evaluate(list(node.expression), data))
        else:
            yield from _run_scope(node, data)


def _run_scope(node: _Scope, data: Any) -> Iterator[str]:
    value = _evaluate(list(node.expression), data)
    if not value:
        yield from _run(node.otherwise, data)
    elif node.word == "range":
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _run(node.body, item)
    else:
        yield from _run(node.body, value if node.word == "with" else data)


def _evaluate(tokens: list[str], data: Any) -> Any:
    value = _command(tokens, data, ())
    while tokens and tokens[0] == "|":
        tokens.pop(0)
        value = _command(tokens, data, (value,))
    return value


def _command(tokens: list[str], data: Any, piped: tuple[Any, ...]) -> Any:
    if not tokens:
        raise _error("an expression is missing")
    function = _FUNCTIONS.get(tokens[0])
    if function is None:
        return _operand(tokens, data)
    tokens.pop(0)
    arguments = []
    while tokens and tokens[0] not in ("|", ")"):
        arguments.append(_operand(tokens, data))
    try:
        return function(*arguments, *piped)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise _error(str(error)) from error


def _operand(tokens: list[str], data: Any) -> Any:
    token = tokens.pop(0)
    if token == "(":
        value = _evaluate(tokens, data)
        if not tokens or tokens.pop(0) != ")":
            raise _error(") is missing")
        return value
    if token.startswith("."):
        return _field(data, token.strip(".").split(".") if token != "." else [])
    if token[0] in '"`':
        return token[1:-1].encode().decode("unicode_escape") if token[0] == '"' else token[1:-1]
    if token in ("true", "false", "nil"):
        return {"true": True, "false": False, "nil": None}[token]
    if re.fullmatch(r"-?\d+(\.\d+)?", token):
        return float(token) if "." in token else int(token)
    raise _error(f"unknown function {token}; known: {', '.join(sorted(_FUNCTIONS))}")


def _field(data: Any, path: list[str]) -> Any:
    for name in path:
        wanted = _ALIASES.get(name.lower(), name.lower())
        if wanted == ".":
            continue
        if not isinstance(data, Mapping):
            return None
        data = next((value for key, value in data.items() if key.lower() == wanted), None)
    return data


def _printed(value: Any) -> str:
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(_printed(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{_printed(value[key])}" for key in sorted(value)) + "]"
    return str(value)


def _join(items: Any, separator: str, limit: int = 0) -> str:
    text = separator.join(_printed(item) for item in items or ())
    return text[:limit] + "..." if limit and len(text) > limit else text


def _index(value: Any, *path: Any) -> Any:
    for step in path:
        value = value[step]
    return value


def _format(form: str, *values: Any) -> str:
    return re.sub(r"%([-+ 0]*\d*(?:\.\d+)?)v", r"%\1s", form) % tuple(
        value if isinstance(value, (int, float)) and not isinstance(value, bool) else _printed(value)
        for value in values
    )


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "join": _join,
    "joinAndTruncate": _join,
    "index": _index,
    "printf": _format,
    "len": lambda value: len(value or ()),
    "print": lambda *values: " ".join(_printed(value) for value in values),
    "println": lambda *values: " ".join(_printed(value) for value in values) + "\n",
    "eq": lambda left, *right: left in right,
    "ne": lambda left, right: left != right,
    "lt": lambda left, right: left < right,
    "gt": lambda left, right: left > right,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
}
