"""Selectors against what Calico's own parser made of the same text, and error messages with positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calico_plugin.policy import selector

GOLDEN = Path(__file__).parents[2] / "data/golden/selectors.json"


def entries() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
    return loaded


def test_refuses_exactly_what_calico_refuses() -> None:
    """Each of the 620 texts parses here if and only if it parses in Calico."""
    wrong = []
    for entry in entries():
        try:
            selector.parse(entry["selector"])
            valid = True
        except selector.SelectorError:
            valid = False
        if valid != entry["valid"]:
            wrong.append((entry["selector"], entry["valid"]))
    assert wrong == []


def test_canonical_text_and_id_are_calicos() -> None:
    """Same printed form and same unique id, so that both engines can share them."""
    wrong = [
        (entry["selector"], node.canonical, entry["canonical"])
        for entry in entries() if entry["valid"]
        for node in [selector.parse(entry["selector"])]
        if (node.canonical, node.id) != (entry["canonical"], entry["id"])
    ]
    assert wrong == []


def test_normalised_text_is_what_calicos_client_stores() -> None:
    """Also for text that does not parse: it is kept, trimmed."""
    wrong = [e["selector"] for e in entries() if selector.normalise(e["selector"]) != e["normalised"]]
    assert wrong == []


def test_matches_what_calico_matches() -> None:
    """All recorded label sets give the recorded answer."""
    wrong = [
        (entry["selector"], case)
        for entry in entries() if entry["valid"]
        for case in entry["cases"]
        if selector.parse(entry["selector"]).match(case["labels"]) != case["match"]
    ]
    assert wrong == []


def test_requirements_are_necessary() -> None:
    """Whatever matches fulfils every requirement: else the index would miss it."""
    for entry in entries():
        if not entry["valid"]:
            continue
        node = selector.parse(entry["selector"])
        wanted = node.requirements()
        for labels in (case["labels"] for case in entry["cases"] if case["match"]):
            for label, requirement in wanted.items():
                if requirement.absent:
                    assert label not in labels, entry["selector"]
                else:
                    assert label in labels, entry["selector"]
                    assert requirement.values is None or labels[label] in requirement.values, entry["selector"]


@pytest.mark.parametrize(("text", "position", "words"), [
    ("a = 'b'", 2, "operator expected after label 'a'"),
    ("has(a", 5, "')' expected"),
    ("a == b", 5, "quoted string expected"),
    ("a in {'x' 'y'}", 10, "',' or '}' expected"),
    ("a == 'x' b == 'y'", 9, "the end expected"),
    ("a == 'x", 5, "closing quote"),
    ("(a == 'x'", 9, "')' expected"),
    ("a == 'x' &&", 11, "label"),
])
def test_error_says_where_and_what(text: str, position: int, words: str) -> None:
    """A person sees the character at which the text went wrong, and what was expected there."""
    with pytest.raises(selector.SelectorError) as caught:
        selector.parse(text)
    assert caught.value.position == position
    assert words in str(caught.value)
    assert f"character {position + 1}" in str(caught.value)


def test_deep_nesting_is_refused_not_fatal() -> None:
    """Text from the datastore never exhausts the stack."""
    with pytest.raises(selector.SelectorError, match="nested"):
        selector.parse("(" * 5000 + "a == 'x'" + ")" * 5000)
