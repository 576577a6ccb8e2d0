"""The word to systemd."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from calico_plugin.node import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_word(abstract: bool, tmp_path: Path) -> None:
    """As sd_notify sends it, to a path or to an abstract name."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(("\0" if abstract else "") + path)
        systemd.settimeout(5)
        notify.ready(("@" if abstract else "") + path)
        assert systemd.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nonexistent/notify"])
def test_nobody_listens(address: str) -> None:
    """It starts all the same."""
    notify.ready(address)
