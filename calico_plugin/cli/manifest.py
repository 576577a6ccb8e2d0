"""Reads manifests: YAML 1.1 as the original reads it, or JSON, from files, directories or standard input, with the line
of every member.

Source: datamodel 2.1, node-and-cli 4.3. Numbers, booleans and nulls are told as Go's YAML reader tells them, which
knows no base-60 numbers and no dates: `64512:100` and `02:42:11:10:00:07` are text, `1e3` is a number, a bare `no` is
false.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import yaml

from calico_plugin.errors import InvalidInput
from calico_plugin.model.problem import Problem, did_you_mean, member
from calico_plugin.model.resources import KINDS
from calico_plugin.model.resources.meta import API_VERSION
from calico_plugin.model.v1 import types as v1

SUFFIXES = (".yaml", ".yml", ".json")
MAX_DOCUMENT = 10 * 1024 * 1024
MAX_DEPTH = 100
MAX_REPEATED = 10_000

_WORDS: dict[str, Any] = {
    **{word: None for word in ("", "~", "null", "Null", "NULL")},
    **{spelled: True for word in ("y", "yes", "true", "on") for spelled in (word, word.capitalize(), word.upper())},
    **{spelled: False for word in ("n", "no", "false", "off") for spelled in (word, word.capitalize(), word.upper())},
}
_INTEGER = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]*|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LAST_STEP = re.compile(r"(\.[^.\[\]]*|\[[^\[\]]*\]|^[^.\[\]]*)$")


@dataclass(frozen=True)
class Manifest:
    """One object as it was read. `lines` maps the path of every member of the document, in lower case, to its line;
    `at` is the object's own path there (`items[3]`), `source` the file's name.
    """

    document: Mapping[str, Any]
    source: str
    line: int
    lines: Mapping[str, int] = field(default_factory=dict)
    at: str = ""

    @property
    def kind(self) -> str:
        return str(self.document.get("kind", ""))

    @property
    def is_v1(self) -> bool:
        """Whether it is of Calico 1.x or 2.x: `objects` converts it."""
        return self.document.get("apiVersion") == v1.API_VERSION and self.kind in v1.KINDS

    @property
    def name(self) -> str:
        metadata = self.document.get("metadata")
        return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""

    def __str__(self) -> str:
        return f"{self.kind}({self.name}): " if self.name and (self.kind in KINDS or self.is_v1) else ""

    def place(self, path: str) -> str:
        """`<file>:<line>` of a member, or of the nearest one around it that is there."""
        full = (f"{self.at}.{path}" if self.at and path else self.at or path).lower()
        while full not in self.lines and len(full) > len(self.at):
            full = _LAST_STEP.sub("", full)
        return f"{self.source}:{self.lines.get(full, self.line) if full else self.line}"


class ManifestError(InvalidInput):
    """Input that is not right; one line for each problem, with its place."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("manifest", None, "")
        self.args = ("\n".join(lines),)


def problems_error(manifest: Manifest, problems: Sequence[Problem]) -> ManifestError:
    """The error for what is wrong with one manifest."""
    return ManifestError([f"{manifest.place(problem.path)}: {manifest}{problem}" for problem in problems])


def read(path: str, recursive: bool = False) -> list[Manifest]:
    """All manifests of a file, a directory (`recursive`: all below it) or standard input (`-`). Raises InvalidInput."""
    return [manifest for source, text in _texts(path, recursive) for manifest in parse(text, source)]


def _texts(path: str, recursive: bool) -> Iterator[tuple[str, str]]:
    if path == "-":
        yield "standard input", sys.stdin.read()
        return
    for file in _files(Path(path), recursive):
        try:
            yield str(file), file.read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidInput("--filename", str(file), f"cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InvalidInput("--filename", str(file), "is not UTF-8 text") from error


def _files(path: Path, recursive: bool) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = path.rglob("*") if recursive else path.iterdir()
    return sorted(file for file in found if file.suffix.lower() in SUFFIXES and file.is_file())


def parse(text: str, source: str) -> list[Manifest]:
    """All manifests of one text: several documents, lists, and …List kinds."""
    if len(text.encode()) > MAX_DOCUMENT:
        raise ManifestError([f"{source}: is larger than {MAX_DOCUMENT} bytes"])
    try:
        nodes = list(yaml.compose_all(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader)))
    except yaml.YAMLError as error:
        raise ManifestError([_syntax_error(error, source)]) from error
    manifests: list[Manifest] = []
    for index, node in enumerate(nodes):
        reader = _Reader(source)
        value = reader.value(node, "")
        if value is None:
            _check_empty(nodes, index, source)
            continue
        manifests.extend(_objects(value, reader, node.start_mark.line + 1))
    return manifests


def _check_empty(nodes: list[yaml.Node], index: int, source: str) -> None:
    """An empty document may stand first or last; between others, the original refuses it, and so do we."""
    if 0 < index < len(nodes) - 1:
        raise ManifestError(
            [f"{source}:{nodes[index].start_mark.line + 1}: document {index + 1} is empty; take out its --- line"]
        )


def _syntax_error(error: yaml.YAMLError, source: str) -> str:
    mark = getattr(error, "problem_mark", None)
    why = str(getattr(error, "problem", None) or error).strip()
    where = f"{source}:{mark.line + 1}" if mark else source
    return f"{where}: is not valid YAML or JSON: {why}"


class _Reader:
    """Turns one document's nodes into plain values and notes the line of each path."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[str, int] = {}
        self._seen: set[int] = set()
        self._repeated = 0

    def value(self, node: yaml.Node, path: str, depth: int = 0) -> Any:
        # Nodes live as long as their document: an identity seen again is an alias.
        self._repeated += id(node) in self._seen
        self._seen.add(id(node))
        if depth > MAX_DEPTH or self._repeated > MAX_REPEATED:
            # An anchor that holds itself, or many that hold each other, would never end.
            raise ManifestError(
                [f"{self.source}:{node.start_mark.line + 1}: is nested too deeply, or grows by its aliases"]
            )
        self.lines.setdefault(path.lower(), node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(node.value)]
        return scalar(node.value) if _is_plain(node) else node.value

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, item in node.value:
            if key.value == "<<" and _is_plain(key):
                merged = {**self._merged(item, path, depth), **merged}
                continue
            name = self._name(key)
            place = member(path, name)
            if name in result:
                first = self.lines[place.lower()]
                raise ManifestError(
                    [f"{self.source}:{key.start_mark.line + 1}: {place}: is given twice, first on line {first}"]
                )
            self.lines[place.lower()] = key.start_mark.line + 1
            result[name] = self.value(item, place, depth + 1)
        return {**merged, **result}

    def _merged(self, node: yaml.Node, path: str, depth: int) -> dict[str, Any]:
        """What a merge key brings: a map, or several of which the first wins."""
        merged: dict[str, Any] = {}
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(part, yaml.MappingNode):
                raise ManifestError([f"{self.source}:{part.start_mark.line + 1}: a merge key (<<) needs a map"])
            merged = {**self._mapping(part, path, depth + 1), **merged}
        return merged

    def _name(self, key: yaml.Node) -> str:
        if not isinstance(key, yaml.ScalarNode):
            raise ManifestError([f"{self.source}:{key.start_mark.line + 1}: a member's name must be text"])
        # A bare name such as `n` or `1` becomes what Go makes of it: text of the value (datamodel 2.1).
        value = scalar(key.value) if _is_plain(key) else key.value
        return (
            {True: "true", False: "false"}[value]
            if isinstance(value, bool)
            else str(value if value is not None else "null")
        )


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style


def scalar(text: str) -> Any:
    """A bare YAML word as Go's reader understands it."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        digits = text.replace("_", "")
        octal = re.fullmatch(r"([-+]?)0([0-7]+)", digits)
        return int(f"{octal[1]}0o{octal[2]}", 0) if octal else int(digits, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def _objects(value: Any, reader: _Reader, line: int, path: str = "") -> Iterator[Manifest]:
    """One object, or those of a list; each is checked for its kind, so that no other step meets an unknown one."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            place = f"{path}[{index}]"
            yield from _objects(item, reader, reader.lines.get(place, line), place)
        return
    if not isinstance(value, Mapping):
        raise ManifestError(
            [f"{reader.source}:{line}: must be a resource with apiVersion, kind, metadata and spec, not {value!r}"]
        )
    manifest = Manifest(value, reader.source, line, reader.lines, path)
    kind = str(value.get("kind", ""))
    if kind.endswith("List") and (kind[:-4] in KINDS or kind[:-4] in ("", *v1.KINDS)) and _has_items(value):
        yield from _objects(value["items"], reader, line, f"{path}.items" if path else "items")
        return
    _check_kind(manifest)
    yield manifest


def _has_items(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("items"), list)


def _check_kind(manifest: Manifest) -> None:
    version, kind = manifest.document.get("apiVersion"), manifest.document.get("kind")
    if manifest.is_v1:
        return
    if not isinstance(kind, str) or not kind:
        raise problems_error(
            manifest, [Problem("kind", kind or None, f"must be given: one of {', '.join(sorted(KINDS))}")]
        )
    if version == v1.API_VERSION and kind not in KINDS:
        known = ", ".join(v1.KINDS)
        hint = f"unknown kind of apiVersion v1{did_you_mean(kind, v1.KINDS)}; known, spelled exactly so: {known}"
        raise problems_error(manifest, [Problem("kind", kind, hint)])
    if version != API_VERSION:
        raise problems_error(manifest, [Problem("apiVersion", version, f"must be {API_VERSION} for kind {kind}")])
    if kind not in KINDS:
        raise problems_error(manifest, [Problem("kind", kind, f"unknown kind{did_you_mean(str(kind), KINDS)}")])
