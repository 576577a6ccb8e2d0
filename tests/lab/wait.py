"""Waiting for a condition, always with a deadline and a name for what is awaited."""
from __future__ import annotations

import time
from typing import Callable, TypeVar

T = TypeVar("T")


class WaitTimeout(AssertionError):
    """The condition did not come true in time; a failed test, not a broken lab."""


def wait_for(what: str, probe: Callable[[], T], seconds: float, pause: float = 0.1) -> T:
    """Ask ``probe`` until its answer is truthy, and return that answer.

    ``probe`` may raise AssertionError for 'not yet, because ...'; the last such reason is part of the WaitTimeout's
    text, so that a failure says what was seen instead.
    """
    end = time.monotonic() + seconds
    while True:
        seen = ""
        try:
            answer = probe()
            if answer:
                return answer
            seen = repr(answer)
        except AssertionError as reason:
            seen = str(reason)
        if time.monotonic() >= end:
            raise WaitTimeout(f"waited {seconds:g} s in vain for {what}; last seen: {seen}")
        time.sleep(pause)
