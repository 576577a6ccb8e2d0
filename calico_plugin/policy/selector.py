"""Selectors: text -> tree -> match, canonical text and id (policy 1.1 to 1.5).

`parse(text)` raises SelectorError with the position of what is wrong. A tree is immutable and matches a plain mapping.
`requirements()` are necessary conditions per label (policy 1.7): what the index files a selector under.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Callable, Mapping

from calico_plugin.errors import InvalidInput

Labels = Mapping[str, str]

MAX_LABEL_BYTES = 512
MAX_DEPTH = 150
"""Nesting of parentheses; Calico's text limit allows more, our stack does not."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9_./-]+")
_OPERATOR = re.compile(
    r"(contains|starts[ \t]*with[ \t]*|ends[ \t]*with[ \t]*|not[ \t]*in|in)(?![A-Za-z0-9_./-])"
)
_BLANKS = re.compile(r"[ \t]*")
# What Go's strings.TrimSpace takes away; Python's strip() takes more.
_GO_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class SelectorError(InvalidInput):
    """A selector that does not parse; `position` counts characters from 0."""

    def __init__(self, text: str, position: int, why: str) -> None:
        self.position = position
        super().__init__("selector", text, f"at character {position + 1}: {why}")


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a label must be for a selector to match: one of `values`, or present at all when None; `absent` wins."""

    values: frozenset[str] | None = None
    absent: bool = False


Requirements = Mapping[str, Requirement]
_NOTHING: Requirements = {}


class Node:
    """Base of the tree. Equality is by canonical text."""

    def match(self, labels: Labels) -> bool:
        raise NotImplementedError

    @cached_property
    def canonical(self) -> str:
        return self._text()

    def _text(self) -> str:
        raise NotImplementedError

    @cached_property
    def id(self) -> str:
        """Calico's unique id: `s:` + base64url of SHA-224."""
        return unique_id("s", self.canonical)

    @cached_property
    def label_names(self) -> frozenset[str]:
        """Every label that the outcome depends on."""
        return frozenset()

    def requirements(self) -> Requirements:
        return _NOTHING

    def rewrite(self, label: Callable[[str], str], everything: Callable[[Node], Node]) -> Node:
        """The same tree with labels renamed and `all()`/`global()` replaced (policy 1.6)."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __repr__(self) -> str:
        return f"<selector {self.canonical}>"


class All(Node):
    def match(self, labels: Labels) -> bool:
        return True

    def _text(self) -> str:
        return "all()"

    def rewrite(self, label: Callable[[str], str], everything: Callable[[Node], Node]) -> Node:
        return everything(self)


class Global(All):
    def _text(self) -> str:
        return "global()"


class _Label(Node):
    """What all tests of one label share."""

    def __init__(self, label: str) -> None:
        self.label = label

    @cached_property
    def label_names(self) -> frozenset[str]:
        return frozenset((self.label,))


class Has(_Label):
    def match(self, labels: Labels) -> bool:
        return self.label in labels

    def _text(self) -> str:
        return f"has({self.label})"

    def requirements(self) -> Requirements:
        return {self.label: Requirement()}

    def rewrite(self, label: Callable[[str], str], everything: Callable[[Node], Node]) -> Node:
        return Has(label(self.label))


class Compare(_Label):
    """`label <word> "value"`, for the five operators that take one string."""

    def __init__(self, label: str, word: str, value: str) -> None:
        super().__init__(label)
        self.word, self.value = word, value

    def match(self, labels: Labels) -> bool:
        found = labels.get(self.label)
        if found is None:
            return self.word == "!="
        return _COMPARE[self.word](found, self.value)

    def _text(self) -> str:
        return f"{self.label} {self.word} {quote(self.value)}"

    def requirements(self) -> Requirements:
        if self.word == "!=":
            return _NOTHING
        return {self.label: Requirement(frozenset((self.value,)) if self.word == "==" else None)}

    def rewrite(self, label: Callable[[str], str], everything: Callable[[Node], Node]) -> Node:
        return Compare(label(self.label), self.word, self.value)


_COMPARE: Mapping[str, Callable[[str, str], bool]] = {
    "==": lambda found, value: found == value,
    "!=": lambda found, value: found != value,
    "contains": lambda found, value: value in found,
    "starts with": lambda found, value: found.startswith(value),
    "ends with": lambda found, value: found.endswith(value),
}


class In(_Label):
    """`label in {…}` and `label not in {…}`."""

    def __init__(self, label: str, values: frozenset[str], negated: bool) -> None:
        super().__init__(label)
        self.values, self.negated = values, negated

    def match(self, labels: Labels) -> bool:
        return (labels.get(self.label) in self.values) != self.negated

    def _text(self) -> str:
        members = ", ".join(quote(value) for value in sorted(self.values, key=_go_bytes))
        return f"{self.label} {'not in' if self.negated else 'in'} {{{members}}}"

    def requirements(self) -> Requirements:
        return _NOTHING if self.negated else {self.label: Requirement(self.values)}

    def rewrite(self, label: Callable[[str], str], everything: Callable[[Node], Node]) -> Node:
        return In(label(self.label), self.values, self.negated)


class Not(Node):
    def __init__(self, operand: Node) -> None:
        self.operand = operand

    def match(self, labels: Labels) -> bool:
        return not self.operand.match(labels)

    def _text(self) -> str:
        return f"!{self.operand.canonical}"

    @cached_property
    def label_names(self) -> frozenset[str]:
        return self.operand.label_names

    def requirements(self) -> Requirements:
        if isinstance(self.operand, Has):
            return {self.operand.label: Requirement(absent=True)}
        return _NOTHING

    def rewrite(self, label: Callable[[str], str], everything: Callable[[Node], Node]) -> Node:
        return Not(self.operand.rewrite(label, everything))


class _Group(Node):
    """Two or more operands under one operator."""

    word = ""

    def __init__(self, operands: tuple[Node, ...]) -> None:
        self.operands = operands

    def _text(self) -> str:
        return "(" + f" {self.word} ".join(operand.canonical for operand in self.operands) + ")"

    @cached_property
    def label_names(self) -> frozenset[str]:
        return frozenset().union(*(operand.label_names for operand in self.operands))

    def rewrite(self, label: Callable[[str], str], everything: Callable[[Node], Node]) -> Node:
        return type(self)(tuple(operand.rewrite(label, everything) for operand in self.operands))


class And(_Group):
    word = "&&"

    def match(self, labels: Labels) -> bool:
        return all(operand.match(labels) for operand in self.operands)

    def requirements(self) -> Requirements:
        merged: dict[str, Requirement] = {}
        for operand in self.operands:
            for label, wanted in operand.requirements().items():
                merged[label] = _both(merged[label], wanted) if label in merged else wanted
        return merged


class Or(_Group):
    word = "||"

    def match(self, labels: Labels) -> bool:
        return any(operand.match(labels) for operand in self.operands)

    def requirements(self) -> Requirements:
        merged = dict(self.operands[0].requirements())
        for operand in self.operands[1:]:
            other = operand.requirements()
            pairs = {label: _either(merged[label], other[label]) for label in merged.keys() & other.keys()}
            merged = {label: wanted for label, wanted in pairs.items() if wanted is not None}
        return merged


def _both(one: Requirement, other: Requirement) -> Requirement:
    if one.absent and other.absent:
        return one
    if one.absent or other.absent:
        return Requirement(frozenset())
    if one.values is None or other.values is None:
        return other if one.values is None else one
    return Requirement(one.values & other.values)


def _either(one: Requirement, other: Requirement) -> Requirement | None:
    if one.absent or other.absent:
        return one if one == other else None
    if one.values is None or other.values is None:
        return Requirement()
    return Requirement(one.values | other.values)


def _go_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def quote(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


def unique_id(prefix: str, text: str) -> str:
    """Calico's hashed ids: prefix, colon, base64url without padding of SHA-224 over `prefix:text`."""
    digest = hashlib.sha224(_go_bytes(f"{prefix}:{text}")).digest()
    return f"{prefix}:{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


class _Parser:
    """Recursive descent over the text; `at` is the position of the next character that was not read."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def fail(self, why: str, position: int | None = None) -> SelectorError:
        return SelectorError(self.text, self.at if position is None else position, why)

    def skip(self) -> None:
        self.at = _BLANKS.match(self.text, self.at).end()  # type: ignore[union-attr]  # it always matches

    def accept(self, token: str) -> bool:
        self.skip()
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def expect(self, token: str, why: str) -> None:
        if not self.accept(token):
            raise self.fail(f"{why}, found {self.found()}")

    def found(self) -> str:
        self.skip()
        return repr(self.text[self.at:self.at + 12]) if self.at < len(self.text) else "the end"

    def whole(self) -> Node:
        self.skip()
        if self.at == len(self.text):
            return ALL
        node = self.alternatives()
        self.skip()
        if self.at != len(self.text):
            raise self.fail(f"'&&', '||' or the end expected, found {self.found()}")
        return node

    def alternatives(self) -> Node:
        operands = [self.conjunction()]
        while self.accept("||"):
            operands.append(self.conjunction())
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def conjunction(self) -> Node:
        operands = [self.unary()]
        while self.accept("&&"):
            operands.append(self.unary())
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def unary(self) -> Node:
        negated = False
        while self.accept("!"):
            negated = not negated
        operand = self.primary()
        return Not(operand) if negated else operand

    def primary(self) -> Node:
        if self.accept("("):
            return self.parenthesis()
        for call, node in (("all(", ALL), ("global(", GLOBAL)):
            if self.accept(call):
                self.expect(")", f"')' expected after '{call}'")
                return node
        if self.accept("has("):
            self.skip()
            label = self.label("label name expected in has()")
            self.expect(")", "')' expected after the label")
            return Has(label)
        return self.comparison()

    def parenthesis(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fail(f"more than {MAX_DEPTH} nested parentheses")
        node = self.alternatives()
        self.expect(")", "')' expected")
        self.depth -= 1
        return node

    def label(self, why: str) -> str:
        start = self.at
        found = _IDENTIFIER.match(self.text, start)
        if found is None:
            raise self.fail(f"{why}, found {self.found()}")
        if len(found.group()) > MAX_LABEL_BYTES:
            raise self.fail(f"a label name has at most {MAX_LABEL_BYTES} characters", start)
        self.at = found.end()
        return found.group()

    def comparison(self) -> Node:
        self.skip()
        label = self.label("label, 'has(…)', 'all()' or '(' expected")
        self.skip()
        for symbol in ("==", "!="):
            if self.accept(symbol):
                return Compare(label, symbol, self.string())
        word = self.operator(label)
        return In(label, self.members(), word == "not in") if word in ("in", "not in") else Compare(
            label, word, self.string())

    def operator(self, label: str) -> str:
        found = _OPERATOR.match(self.text, self.at)
        if found is None:
            raise self.fail(
                f"operator expected after label {label!r} (==, !=, in, not in, contains, starts with, ends with), "
                f"found {self.found()}"
            )
        self.at = found.end()
        return _WORDS[re.sub(r"[ \t]", "", found.group())]

    def string(self) -> str:
        self.skip()
        delimiter = self.text[self.at:self.at + 1]
        if delimiter not in ("'", '"'):
            raise self.fail(f"quoted string expected, found {self.found()}")
        end = self.text.find(delimiter, self.at + 1)
        if end < 0:
            raise self.fail("string without closing quote")
        value, self.at = self.text[self.at + 1:end], end + 1
        return value

    def members(self) -> frozenset[str]:
        self.expect("{", "'{' expected")
        values: set[str] = set()
        while not self.accept("}"):
            values.add(self.string())
            if self.accept("}"):
                break
            self.expect(",", "',' or '}' expected")
        return frozenset(values)


_WORDS = {"contains": "contains", "startswith": "starts with", "endswith": "ends with", "notin": "not in", "in": "in"}

ALL = All()
GLOBAL = Global()


@lru_cache(maxsize=4096)
def parse(text: str) -> Node:
    """Raises SelectorError. Empty or blank text selects everything."""
    return _Parser(text).whole()


def normalise(text: str) -> str:
    """Canonical text, or the trimmed text when it does not parse (what Calico's client stores)."""
    trimmed = text.strip(_GO_SPACE)
    try:
        return parse(trimmed).canonical
    except SelectorError:
        return trimmed


def conjunction(*nodes: Node | None) -> Node:
    """AND of those that are there; all() when none is."""
    present = tuple(node for node in nodes if node is not None)
    if not present:
        return ALL
    return present[0] if len(present) == 1 else And(present)
