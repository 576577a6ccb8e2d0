"""The three kinds of patches, on plain documents. RFC 7396 and RFC 6902 have their own examples; these are they."""

from __future__ import annotations

from typing import Any

import pytest

from calico_plugin.cli.patching import apply, merge
from calico_plugin.errors import InvalidInput

# RFC 7396, appendix A: original, patch, result.
MERGES: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("document", "change", "expected"), MERGES)
def test_merge_as_the_rfc(document: Any, change: Any, expected: Any) -> None:
    """The examples of RFC 7396."""
    assert merge(document, change) == expected


# RFC 6902, appendix A, as (document, operations, result); None: refused.
JSON: list[tuple[dict[str, Any], list[dict[str, Any]], Any]] = [
    ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
    ({"foo": ["bar", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}], {"foo": ["bar", "qux", "baz"]}),
    ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
    ({"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
    ({"baz": "qux"}, [{"op": "replace", "path": "/baz", "value": "boo"}], {"baz": "boo"}),
    ({"a": {"b": 1}, "c": {}}, [{"op": "move", "from": "/a/b", "path": "/c/d"}], {"a": {}, "c": {"d": 1}}),
    ({"foo": [1, 2, 3, 4]}, [{"op": "move", "from": "/foo/1", "path": "/foo/3"}], {"foo": [1, 3, 4, 2]}),
    ({"baz": "qux", "foo": ["a", 2]}, [{"op": "test", "path": "/foo/1", "value": 2}], {"baz": "qux", "foo": ["a", 2]}),
    ({"baz": "qux"}, [{"op": "test", "path": "/baz", "value": "bar"}], None),
    ({"foo": "bar"}, [{"op": "add", "path": "/child", "value": {"g": {}}}], {"foo": "bar", "child": {"g": {}}}),
    ({"foo": "bar"}, [{"op": "add", "path": "/baz/bat", "value": "qux"}], None),
    ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": "10"}], None),
    ({"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["a"]}], {"foo": ["bar", ["a"]]}),
    ({"a": 1}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": 1, "b": 1}),
    ({"a": {"b": 1}}, [{"op": "move", "from": "/a", "path": "/a/b"}], None),
    ({"a": [1]}, [{"op": "remove", "path": "/a/01"}], None),
    ({"a": [1]}, [{"op": "replace", "path": "/a/1", "value": 2}], None),
    ({"a": 1}, [{"op": "remove", "path": "/b"}], None),
    ({"a": 1}, [{"op": "nope", "path": "/b"}], None),
    ({"a": 1}, [{"op": "add", "path": "b", "value": 1}], None),
    ({"a": 1}, [{"op": "add", "path": "/b"}], None),
    ({"a": True}, [{"op": "test", "path": "/a", "value": 1}], None),
]


@pytest.mark.parametrize(("document", "operations", "expected"), JSON)
def test_json_as_the_rfc(document: dict[str, Any], operations: list[dict[str, Any]], expected: Any) -> None:
    """The examples of RFC 6902; what it refuses is refused, and the given document is never changed."""
    before = repr(document)
    if expected is None:
        with pytest.raises(InvalidInput):
            apply("json", document, operations)
    else:
        assert apply("json", document, operations) == expected
    assert repr(document) == before


STRATEGIC: list[tuple[dict[str, Any], dict[str, Any], Any]] = [
    ({"spec": {"a": 1, "b": 2}}, {"spec": {"b": None, "c": 3}}, {"spec": {"a": 1, "c": 3}}),
    ({"spec": {"rules": [1, 2]}}, {"spec": {"rules": [3]}}, {"spec": {"rules": [3]}}),
    ({"spec": {"a": 1}}, {"spec": {"$patch": "replace", "b": 2}}, {"spec": {"b": 2}}),
    ({"spec": {"a": {"x": 1}}}, {"spec": {"a": {"$patch": "delete"}}}, {"spec": {}}),
    ({"spec": {"a": 1, "b": 2}}, {"spec": {"$retainKeys": ["b", "c"], "c": 3}}, {"spec": {"b": 2, "c": 3}}),
    ({"metadata": {"finalizers": ["a"]}}, {"metadata": {"finalizers": ["b", "a"]}},
     {"metadata": {"finalizers": ["a", "b"]}}),
    ({"metadata": {"finalizers": ["a", "b"]}}, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}},
     {"metadata": {"finalizers": ["b"]}}),
    ({"metadata": {"ownerReferences": [{"uid": "1", "name": "x"}, {"uid": "2"}]}},
     {"metadata": {"ownerReferences": [{"uid": "1", "kind": "K"}, {"uid": "2", "$patch": "delete"}, {"uid": "3"}]}},
     {"metadata": {"ownerReferences": [{"uid": "1", "name": "x", "kind": "K"}, {"uid": "3"}]}}),
    ({"spec": {"rules": [{"a": 1}]}}, {"spec": {"rules": [{"b": 1}, {"$patch": "replace"}]}},
     {"spec": {"rules": [{"b": 1}]}}),
    ({"spec": {}}, {"$patch": "delete"}, None),
    ({"spec": {}}, {"spec": {"$patch": "nope"}}, None),
]


@pytest.mark.parametrize(("document", "change", "expected"), STRATEGIC)
def test_strategic(document: dict[str, Any], change: dict[str, Any], expected: Any) -> None:
    """Directives are obeyed, the two lists with a merge key are merged, all others replaced."""
    if expected is None:
        with pytest.raises(InvalidInput):
            apply("strategic", document, change)
    else:
        assert apply("strategic", document, change) == expected


@pytest.mark.parametrize(("form", "change"), [("merge", []), ("strategic", "x"), ("json", {})])
def test_wrong_shape_of_a_patch(form: str, change: Any) -> None:
    """Each type says what it takes."""
    with pytest.raises(InvalidInput):
        apply(form, {"a": 1}, change)
