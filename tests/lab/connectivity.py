"""Who reaches whom, and streams that must not break."""
from __future__ import annotations

import re
import shlex
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Sequence

from tests.lab.lab import Lab
from tests.lab.machine import Machine
from tests.lab.wait import wait_for

PROBER = Path(__file__).with_name("prober.py")
PROBE_PAUSE = 0.1
IMAGE_COMMAND = "sleep 100000"


@dataclass(frozen=True)
class Container:
    """A container of the lab."""

    machine: Machine
    name: str

    def run(self, *argv: str, check: bool = True, seconds: float = 30) -> str:
        """Run a command in it, and return its output."""
        return self.machine.run("docker", "exec", self.name, *argv, check=check, seconds=seconds).stdout

    def pings(self, target: str, wait: int = 1) -> bool:
        """Whether one ping to an address or a name is answered within ``wait`` seconds."""
        words = ("docker", "exec", self.name, "ping", "-c", "1", "-W", str(wait), target)
        return self.machine.run(*words, check=False, seconds=wait + 10).returncode == 0

    def inspect(self, template: str) -> str:
        """docker inspect -f TEMPLATE"""
        return self.machine.run("docker", "inspect", "-f", template, self.name).stdout.strip()

    def address(self) -> str:
        """Its IPv4 address; it must be on one network only."""
        found = self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}").split()
        assert len(found) == 1, f"{self.name} has the addresses {found}"
        return found[0]

    def endpoint(self) -> str:
        """The id of its (one) endpoint."""
        return self.inspect("{{range .NetworkSettings.Networks}}{{.EndpointID}}{{end}}")

    def interface(self) -> str:
        """The name of the host's end of its link."""
        return "cali" + self.endpoint()[:11]

    def inside(self, *argv: str) -> list[str]:
        """An outer command line that runs in the container's network, whatever dockerd does meanwhile."""
        first = self.inspect("{{.State.Pid}}")
        return ["nsenter", f"--net=/proc/{self.machine.init.pid}/root/proc/{first}/ns/net", "--", *argv]

    def remove(self) -> None:
        """docker rm -f"""
        self.machine.run("docker", "rm", "-f", self.name, check=False)


def start_container(lab: Lab, host: str, name: str, network: str, *options: str,
                    command: str = IMAGE_COMMAND) -> Container:
    """docker run -d on a host."""
    lab[host].run("docker", "run", "-d", "--name", name, "--net", network, *options, "busybox", *shlex.split(command))
    return Container(lab[host], name)


def matrix(containers: Sequence[Container]) -> dict[tuple[str, str], bool]:
    """Who pings whom by address, for every ordered pair."""
    addresses = {one.name: one.address() for one in containers}
    return {(one.name, other.name): one.pings(addresses[other.name])
            for one in containers for other in containers if one is not other}


class Stream:
    """Traffic from one container to another, ten probes a second, from entering the ``with`` to its end.

    ``ping`` counts echo requests that were not answered; ``tcp`` keeps one connection talking. After the ``with``:
    ``answers`` (how many came), ``lost`` (ping only), ``longest`` (seconds between two answers), ``broken`` (why the
    probing ended by itself, or '').
    """

    def __init__(self, source: Container, target: Container, kind: str = "ping", port: int = 7007) -> None:
        self.answers, self.lost, self.longest, self.broken = 0, 0, 0.0, ""
        self._kind = kind
        self._log = source.machine.logs / f"stream-{kind}-{source.name}-{target.name}.log"
        address = target.address()
        python = ["/usr/bin/python3", "-I", str(PROBER)]
        self._server = target.inside(*python, "server", str(port)) if kind == "tcp" else None
        if kind == "tcp":
            self._client = source.inside(*python, "client", address, str(port))
        else:
            self._client = source.inside("ping", "-n", "-D", "-O", "-i", str(PROBE_PAUSE), address)

    def __enter__(self) -> Stream:
        self._ends: list[subprocess.Popen] = []
        if self._server:
            server = _start(self._server, subprocess.PIPE)
            self._ends.append(server)
            assert server.stdout is not None and server.stdout.readline() == b"ready\n", "the echo server did not start"
        with self._log.open("wb") as log:
            self._ends.append(_start(self._client, log))
        try:
            wait_for(f"the first answer of the {self._kind} stream", self._times, 15)
        except AssertionError:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        client = self._ends[-1]
        if client.poll() is not None:
            self.broken = self._log.read_text()[-300:]
        self._end()
        times = self._times()
        self.answers = len(times)
        self.longest = max((later - earlier for earlier, later in zip(times, times[1:])), default=0.0)
        if summary := re.search(r"(\d+) packets transmitted, (\d+) received", self._log.read_text()):
            # The last one may still have been on its way when we ended the ping.
            self.lost = max(0, int(summary[1]) - int(summary[2]) - 1)

    def _times(self) -> list[float]:
        pattern = r"^\[(\d+\.\d+)\] \d+ bytes from" if self._kind == "ping" else r"^(\d+\.\d+)$"
        return [float(found) for found in re.findall(pattern, self._log.read_text(), re.MULTILINE)]

    def _end(self) -> None:
        for process in reversed(self._ends):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()

    def unbroken(self, longest: float) -> None:
        """Fail unless it never paused for more than ``longest`` seconds; call it after the ``with``."""
        assert not self.broken, f"the {self._kind} stream ended by itself: {self.broken}"
        assert self.answers > 1, f"the {self._kind} stream had {self.answers} answers"
        assert self.longest <= longest, f"the {self._kind} stream paused for {self.longest:.2f} s (log {self._log})"


def _start(argv: list[str], output: object) -> subprocess.Popen:
    # Not even a killed test run leaves probes behind.
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *argv], stdin=subprocess.DEVNULL,
                            stdout=output, stderr=subprocess.STDOUT)  # type: ignore[call-overload]
