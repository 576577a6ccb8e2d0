"""One line an event, in both forms, from every thread; and the bug marker."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import Iterator

import pytest
import structlog

from calico_plugin.errors import InvalidInput
from calico_plugin.observe import log


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Other tests find structlog and logging as they were."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def test_key_value_lines() -> None:
    """Fields are quoted where needed and a line stays one line."""
    out = io.StringIO()
    log.setup("calico-x", stream=out)
    structlog.get_logger(part="p").info("it works", error=ValueError('a "b"\nc'), number=1)
    (line,) = out.getvalue().splitlines()
    assert ' level=info program=calico-x event="it works" ' in line and "part=p" in line and "number=1" in line
    assert r"\n" in line


def test_json_lines() -> None:
    """Each line parses, values of any type included."""
    out = io.StringIO()
    log.setup("calico-x", json=True, stream=out)
    structlog.get_logger().warning("x", error=ValueError("y"))
    line = json.loads(out.getvalue())
    assert (line["event"], line["level"], line["program"]) == ("x", "warning", "calico-x")


def test_level() -> None:
    """What is below the level costs no line; an unknown level is refused by the name of its setting."""
    out = io.StringIO()
    log.setup("calico-x", "WARNING", stream=out)
    structlog.get_logger().info("quiet")
    structlog.get_logger().error("loud")
    logging.getLogger("library").info("quiet")
    logging.getLogger("library").warning("loud too")
    assert len(out.getvalue().splitlines()) == 2 and "quiet" not in out.getvalue()
    with pytest.raises(InvalidInput, match="CALICO_LOG_LEVEL"):
        log.setup("calico-x", "chatty")


def test_threads_say_the_program_too() -> None:
    """A thread's lines carry what the main thread's do."""
    out = io.StringIO()
    log.setup("calico-x", stream=out)
    thread = threading.Thread(target=lambda: structlog.get_logger().info("from a thread"))
    thread.start()
    thread.join()
    assert "program=calico-x" in out.getvalue()


def test_bug_marker() -> None:
    """A mistake of ours is marked, and shows the exception being handled, on one line."""
    out = io.StringIO()
    log.setup("calico-x", stream=out)
    try:
        raise RuntimeError("impossible")
    except RuntimeError:
        log.bug(structlog.get_logger(), "cannot happen", endpoint="e")
    log.bug(structlog.get_logger(), "neither")
    first, second = out.getvalue().splitlines()
    assert log.BUG_MARKER in first and "RuntimeError: impossible" in first and "endpoint=e" in first
    assert log.BUG_MARKER in second and "exception" not in second
