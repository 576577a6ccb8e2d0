"""Real etcd members on free ports of loopback, for tests: started, frozen, killed and started again by process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Sequence

from calico_plugin.datastore.etcd import connect
from calico_plugin.deadline import Deadline

START_SECONDS = 20.0


def free_port() -> int:
    """A port that nobody uses now. Another may take it before us: then the member ends at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Member:
    """One etcd process. `options` are extra flags; the data directory survives `kill` and `start`."""

    def __init__(self, name: str, data_dir: Path, options: Sequence[str] = (), scheme: str = "http") -> None:
        self.name, self.data_dir, self.options = name, data_dir, list(options)
        self.client_url = f"{scheme}://127.0.0.1:{free_port()}"
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = data_dir.with_suffix(".log")

    def start(self, initial_cluster: str) -> None:
        command = [
            # Ends with us even if we are killed; the process id stays that of etcd.
            "setpriv", "--pdeathsig", "KILL",
            "etcd", "--name", self.name, "--data-dir", str(self.data_dir), "--enable-v2", "--unsafe-no-fsync",
            "--listen-client-urls", self.client_url, "--advertise-client-urls", self.client_url,
            "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", initial_cluster, "--logger", "zap", "--log-level", "warn", *self.options,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=_plain_environment())

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def freeze(self) -> None:
        """Returns when all its threads stand still: until then it may answer."""
        assert self.process is not None
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, also of a frozen one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Cluster:
    """`size` members that know each other. Use `etcd_cluster` so that they end with the test."""

    def __init__(self, base: Path, size: int = 1, options: Sequence[str] = (), scheme: str = "http") -> None:
        self.members = [Member(f"m{number}", base / f"m{number}", options, scheme) for number in range(size)]
        self.initial = ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    @property
    def endpoints(self) -> list[str]:
        return [member.client_url for member in self.members]

    def start(self) -> None:
        for member in self.members:
            member.start(self.initial)

    def restart(self, member: Member) -> None:
        """Start a killed member on its old data."""
        member.start(self.initial)

    def kill(self) -> None:
        for member in self.members:
            member.kill()


def wait_ready(endpoints: Sequence[str], **access: str) -> None:
    """Until each endpoint answers a linearizable read, so there is a leader too."""
    for endpoint in endpoints:
        over = time.monotonic() + START_SECONDS
        client = connect([endpoint], source="a test", **access)
        try:
            while True:
                try:
                    client.get("/ready", Deadline(1))
                    break
                except Exception:
                    if time.monotonic() > over:
                        raise
        finally:
            client.close()


@contextmanager
def etcd_cluster(base: Path, size: int = 1, options: Sequence[str] = ()) -> Iterator[Cluster]:
    """A running cluster whose members all answer; ends them by process id and removes their data."""
    cluster = Cluster(base, size, options)
    try:
        cluster.start()
        wait_ready(cluster.endpoints)
        yield cluster
    finally:
        cluster.kill()
        for member in cluster.members:
            shutil.rmtree(member.data_dir, ignore_errors=True)


def _plain_environment() -> dict[str, str]:
    # etcd reads ETCD_* as its own flags and ends on those that it does not know, our client's settings among them.
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
