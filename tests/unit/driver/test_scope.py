"""What `auto` finds out about the dockerd at the other end of the socket."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from calico_plugin.driver import scope
from calico_plugin.errors import InvalidInput


def process(proc: Path, arguments: list[str], files: dict[str, object] | None = None) -> Path:
    """A /proc with one process 7, its command line, and files under its root or working directory."""
    home = proc / "7"
    (home / "root/etc/docker").mkdir(parents=True)
    (home / "cwd").mkdir()
    (home / "cmdline").write_bytes(b"".join(argument.encode() + b"\0" for argument in arguments))
    for name, content in (files or {}).items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return proc


STORE = "etcd://172.20.62.127:2379"


@pytest.mark.parametrize(
    "arguments,files,expected",
    [
        (["dockerd"], {}, "local"),
        (["dockerd", f"--cluster-store={STORE}"], {}, "global"),
        (["dockerd", "-D", "--cluster-store", STORE], {}, "global"),
        (["dockerd", "--cluster-store="], {}, "local"),
        (["dockerd", "--cluster-store-opt", "kv.path=x"], {}, "local"),
        (["dockerd"], {"root/etc/docker/daemon.json": {"cluster-store": STORE}}, "global"),
        (["dockerd"], {"root/etc/docker/daemon.json": {"debug": True}}, "local"),
        (["dockerd"], {"root/etc/docker/daemon.json": "{ broken"}, "local"),
        (["dockerd", "--config-file=/other.json"], {"root/other.json": {"cluster-store": STORE}}, "global"),
        (["dockerd", "--config-file", "mine.json"], {"cwd/mine.json": {"cluster-store": STORE}}, "global"),
        (
            ["dockerd", "--config-file=/other.json"],
            {"root/etc/docker/daemon.json": {"cluster-store": STORE}},
            "local",
        ),
    ],
)
def test_the_cluster_store_decides(
    tmp_path: Path, arguments: list[str], files: dict[str, object], expected: str
) -> None:
    """On the command line or in the configuration file that this dockerd reads, seen from its own root."""
    assert scope.of_process(7, process(tmp_path, arguments, files)) == expected


def test_a_process_that_cannot_be_seen_is_local(tmp_path: Path) -> None:
    assert scope.of_process(8, tmp_path) == "local"


def test_the_peer_of_a_unix_socket_is_asked(tmp_path: Path) -> None:
    """The other end of this socket pair is we ourselves, without a cluster store."""
    ours, _theirs = socket.socketpair(socket.AF_UNIX)
    process_dir = tmp_path / str(os.getpid())
    process_dir.mkdir()
    (process_dir / "cmdline").write_bytes(b"dockerd\0--cluster-store=etcd://x\0")
    assert scope.of_caller("auto", ours, tmp_path) == "global"
    assert scope.of_caller("local", ours, tmp_path) == "local"
    assert scope.of_caller("auto", None, tmp_path) == "local"


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(InvalidInput, match="CALICO_LIBNETWORK_SCOPE.*auto, global or local"):
        scope.check("swarm")
