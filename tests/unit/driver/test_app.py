"""From an error to Docker's answer: the one place where that happens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask

from calico_plugin.deadline import Deadline
from calico_plugin.driver.app import CALL_SECONDS, Method, blueprint, create_app
from calico_plugin.errors import CalicoError, DatastoreUnavailable


def app_of(handle: Any) -> Flask:
    return create_app(blueprint("test", (Method("Test.Call", handle),)))


def call(handle: Any, path: str = "/Test.Call", **options: Any) -> tuple[int, Any]:
    answer = app_of(handle).test_client().post(path, **options)
    return answer.status_code, json.loads(answer.data)


def test_an_answer_comes_as_it_is() -> None:
    """Body and deadline reach the method; no content type is asked for."""
    seen: list[Any] = []

    def handle(body: bytes, deadline: Deadline) -> bytes:
        seen.append((body, deadline.left()))
        return b'{"Value":{}}'

    assert call(handle, data=b'{"a":1}\n') == (200, {"Value": {}})
    assert seen[0][0] == b'{"a":1}\n' and 0 < seen[0][1] <= CALL_SECONDS < 20


@pytest.mark.parametrize("error", [CalicoError("no\nway"), DatastoreUnavailable("no way")])
def test_an_error_of_ours_is_500_in_one_line(error: CalicoError) -> None:
    def handle(body: bytes, deadline: Deadline) -> bytes:
        raise error

    assert call(handle) == (500, {"Err": "no way", "Error": "no way"})


def test_a_mistake_of_ours_shows_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """The user is told where to look; the log has the bug marker, which the tests of whole hosts look for."""

    def handle(body: bytes, deadline: Deadline) -> bytes:
        return {}["secret"]  # type: ignore[no-any-return, index]

    status, answer = call(handle)
    assert status == 500 and "KeyError" in answer["Err"] and "secret" not in answer["Err"]
    written = capsys.readouterr()
    assert "CALICO-BUG" in written.out + written.err


def test_an_unknown_method_is_404_and_get_is_405() -> None:
    assert call(lambda body, deadline: b"{}", path="/Test.Other")[0] == 404
    client = app_of(lambda body, deadline: b"{}").test_client()
    answer = client.get("/Test.Call")
    assert answer.status_code == 405 and "Err" in json.loads(answer.data)


def test_a_body_beyond_all_measure_is_refused() -> None:
    status, answer = call(lambda body, deadline: b"{}", data=b"x" * (5 << 20))
    assert status == 500 and "bytes" in answer["Err"]
