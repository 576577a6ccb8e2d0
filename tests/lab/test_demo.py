"""The demo in a form that is not its usual one, and what it says to forms that it does not know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.mark.parametrize("form", [{"FORM": "container"}], ids=str)
def test_plays_to_the_end(form: dict[str, str]) -> None:
    """Every check comes true, up to hosts that are bare again."""
    words = [sys.executable, "-m", "tests.lab", "demo"]
    done = subprocess.run(
        words, cwd=Path(__file__).parents[2], env={**os.environ, **form}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert "the experiment works" in done.stdout


def test_unknown_form() -> None:
    """It is refused by name, and nothing is built."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab", "demo"], cwd=Path(__file__).parents[2], text=True, capture_output=True,
        env={**os.environ, "FORM": "contaner"}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "contaner" in done.stderr
