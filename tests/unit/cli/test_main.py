"""The root: help, exit status, errors without tracebacks, and a start that imports only what it needs."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from calico_plugin.cli.main import COMMANDS, run


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["get", "--help"], ["ipam", "show", "-h"], ["--version"]])
def test_help_is_success(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Help goes to standard output with status 0."""
    assert run(arguments) == 0
    assert capsys.readouterr().out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The list is complete."""
    run(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gett", "ippool"], "did you mean get?"),
        (["get", "ippool", "--nope"], "--nope"),
        (["pool", "add", "192.168.0.0/16"], "calicoctl get ippool"),
        (["get"], "give a kind"),
        (["apply"], "-f FILE"),
        (["get", "ipool"], "did you mean"),
        (["-l", "loud", "get", "x"], "loud"),
        (["ipam", "configure", "--strictaffinity=maybe"], "maybe"),
    ],
)
def test_mistakes_exit_1_with_advice(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every mistake is status 1 and a message on standard error, never a traceback."""
    assert run(arguments) == 1
    out, err = capsys.readouterr()
    assert expected in err and "Traceback" not in err and not out


@pytest.mark.parametrize(
    "arguments",
    [
        ["version", "--cli"],
        ["validate", "--file=-", "--skip-em"],
        ["validate", "--fil", "-", "--skip-e"],
        ["get", "--he"],
        ["validate", "-f=-", "--skip-e"],
    ],
)
def test_long_options_may_be_cut_short(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the original takes them, also several in a line."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(arguments) == 0, capsys.readouterr().err


def test_a_beginning_of_several_options_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It could mean either."""
    assert run(["node", "run", "--ip-auto", "x", "--i"]) == 1
    assert "--i" in capsys.readouterr().err


def test_unreachable_datastore_names_endpoints_and_source(
    clean_environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which endpoint was tried, and where that setting came from."""
    monkeypatch.setattr("calico_plugin.cli.session.SECONDS", 0.5)
    clean_environ.setenv("ETCD_ENDPOINTS", "http://127.0.0.1:1")
    assert run(["get", "ippool"]) == 1
    err = capsys.readouterr().err
    assert "127.0.0.1:1" in err and "ETCD_ENDPOINTS in the environment" in err and "etcd" in err


@pytest.mark.parametrize("arguments", [["--help"], ["version", "--client"], ["get", "--help"]])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    """What does not talk to etcd or the kernel does not import their clients."""
    code = (
        "import sys\nfrom calico_plugin.cli.main import run\n"
        f"run({arguments!r})\n"
        "heavy = ('grpc', 'etcd3', 'pyroute2', 'yaml', 'flask', 'docker')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.stderr.strip() == "[]"
