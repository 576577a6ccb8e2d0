"""calico-node's checks."""

from __future__ import annotations

import pytest

from calico_plugin.node.health import judge, parse
from calico_plugin.node.report import Row


def row(peer: str, established: bool) -> Row:
    return Row(peer, peer, "global", "up" if established else "start", "", "", established, False)


UP, DOWN = row("10.0.0.2", True), row("10.0.0.3", False)


@pytest.mark.parametrize(
    ("rows", "recovering", "young", "reason"),
    [
        ([], False, True, None),
        ([UP], False, True, None),
        ([UP, DOWN], False, True, "BGP not established with 10.0.0.3"),
        ([UP, DOWN], False, False, None),
        ([DOWN], False, False, "BGP not established with 10.0.0.3"),
        ([UP], True, True, "BIRD's graceful restart is in progress"),
        ([UP], True, False, None),
    ],
)
def test_bird_ready(rows: list[Row], recovering: bool, young: bool, reason: str | None) -> None:
    """Soon after the start all sessions must be up; later one is enough."""
    assert judge(rows, recovering, young) == reason


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["-felix-ready", "-bird-ready"], (("felix-ready", "bird-ready"), 30.0)),
        (["--bird-live", "--threshold-time=1m"], (("bird-live",), 60.0)),
        ([], None),
        (["-threshold-time=1m"], None),
        (["--help"], None),
        (["bird-live"], None),
    ],
)
def test_command_line(words: list[str], result: object) -> None:
    """One dash or two; without a check it is no check."""
    assert parse(words) == result
