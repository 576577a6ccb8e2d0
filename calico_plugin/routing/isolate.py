"""Finds what in a configuration BIRD refuses, so that one bad resource costs only itself (node-and-cli 6, number 10).

BIRD names the line; the block around it is a session or a filter's function, and it is rendered again without that.
What stands outside such blocks is not of a resource's making: then nothing is isolated, and BIRD goes on as it is.
"""

from __future__ import annotations

import re
from typing import Callable, Mapping

from calico_plugin.routing.apply import Outcome, Refused
from calico_plugin.routing.bird import Rendered

# More bad resources than this at once is no accident any more.
MOST = 32
_START = re.compile(r"protocol bgp (?P<session>\S+) from |function (?P<function>'bgp_[^']+')")


def culprit(text: str, line: int) -> str:
    """Name of the session or function whose block holds the line (from 1); "" when it is none."""
    lines = text.splitlines()
    if not 0 < line <= len(lines):
        return ""
    for index in range(line - 1, -1, -1):
        if found := _START.match(lines[index]):
            return found["session"] or found["function"]
        # Blocks end with a brace in the first column; the line itself may be that one.
        if index < line - 1 and lines[index].startswith("}"):
            return ""
    return ""


def load_without_the_bad(
    render: Callable[[Mapping[str, str]], Rendered], load: Callable[[str], Outcome]
) -> tuple[Rendered, Outcome]:
    """`render` (without some names) and `load`, until BIRD takes it. Raises Refused when that leads nowhere."""
    without: dict[str, str] = {}
    while True:
        rendered = render(without)
        try:
            return rendered, load(rendered.text)
        except Refused as error:
            name = culprit(rendered.text, error.line)
            if not name or name in without or len(without) >= MOST:
                raise
            without[name] = error.why


__all__ = ["culprit", "load_without_the_bad"]
