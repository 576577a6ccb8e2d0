"""Tables fit a terminal; what is piped is whole."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from calico_plugin.cli import output, terminal

HEADINGS = ["NAME", "CIDR", "SELECTOR"]
ROWS = [["web-net", "10.50.0.0/16", "has(rack) && rack in {'r1', 'r2', 'r3', 'r4'}"]]


@pytest.mark.parametrize("room", [40, 60, 200])
def test_lines_fit(room: int) -> None:
    """The widest columns give way, the name last; a wide terminal changes nothing."""
    headings, rows = terminal.fit(HEADINGS, ROWS, 3, room)
    assert sum(max(len(row[index]) for row in (headings, *rows)) + 3 for index in range(3)) <= room
    assert rows[0][0] == "web-net"
    assert (rows == ROWS) == (room == 200)


def test_a_tiny_terminal_shows_something() -> None:
    """Columns never vanish."""
    _, rows = terminal.fit(HEADINGS, ROWS, 3, 10)
    assert all(rows[0]) and rows[0][2].endswith("…")


def test_pipes_get_everything() -> None:
    """Standard output is no terminal here."""
    assert ROWS[0][2] in output.table(HEADINGS, ROWS) and ROWS[0][2] in output.boxed(HEADINGS, ROWS)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that calls calicoctl back; bash takes it without complaint."""
    from calico_plugin.cli.main import run

    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_CALICOCTL_COMPLETE" in script and "calicoctl" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_on_a_real_terminal() -> None:
    """A program with a terminal of 50 columns writes lines of at most 50."""
    code = f"from calico_plugin.cli import output; print(output.table({HEADINGS!r}, {ROWS!r}))"
    controller, terminal_end = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    subprocess.run(
        [sys.executable, "-c", code], stdout=terminal_end, check=True, timeout=60, env={**environment, "COLUMNS": "50"}
    )
    os.close(terminal_end)
    text = os.read(controller, 10000).decode()
    os.close(controller)
    assert "…" in text and max(len(line) for line in text.splitlines()) <= 50


def test_completion_in_a_real_bash(tmp_path: Path) -> None:
    """What the shell offers after `calicoctl di`, and for kinds."""
    script = (
        'source <(calicoctl completion bash); COMP_WORDS=(calicoctl {words}); COMP_CWORD={position}; '
        '_calicoctl_completion calicoctl; echo "${{COMPREPLY[@]}}"'
    )
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def offered(words: str, position: int) -> list[str]:
        command = ["bash", "-c", script.format(words=words, position=position)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert not done.stderr
        return done.stdout.split()

    assert offered("di", 1) == ["diff"]
    assert "ippool" in offered("get ipp", 2)
    assert offered("ipam sp", 2) == ["split"]
