"""Live control of the parts that run on a machine: etcd, dockerd, calico-node. By process id, never by a broad name."""
from __future__ import annotations

import json
import signal
from dataclasses import dataclass

from tests.lab import releases
from tests.lab.image import IMAGE, busybox_tar
from tests.lab.machine import Machine, Process
from tests.lab.spec import LabSpec
from tests.lab.state import cgroup_parent
from tests.lab.wait import wait_for

CALICO_PREFIX = "/calico/"  # every key of ours, those of Calico's data model and those of the Docker side


@dataclass(frozen=True)
class Etcd:
    """The cluster's datastore, which is also the store of Docker 20.10."""

    machine: Machine
    url: str

    def start(self) -> None:
        """Start it (with its old data, if any) and wait until it serves."""
        self.machine.spawn("etcd.log", "etcd", "--name=lab", "--data-dir=/var/lib/etcd-lab", "--enable-v2=true",
                           f"--listen-client-urls={self.url},http://127.0.0.1:2379",
                           f"--advertise-client-urls={self.url}", "--log-level=warn")
        wait_for("etcd to serve", self.healthy, 20)

    def healthy(self) -> bool:
        """Whether it answers a read that needs a leader."""
        return self._ctl("endpoint", "health", check=False).returncode == 0

    def process(self) -> Process:
        """The running etcd."""
        return one_of(self.machine, "etcd")

    def stop(self) -> None:
        """End it; its data stay."""
        self.process().end()

    def keys(self, prefix: str = CALICO_PREFIX) -> list[str]:
        """All v3 keys below a prefix."""
        return self._ctl("get", prefix, "--prefix", "--keys-only").stdout.split()

    def values(self, prefix: str = CALICO_PREFIX) -> dict[str, str]:
        """Keys and values below a prefix."""
        lines = self._ctl("get", prefix, "--prefix").stdout.splitlines()
        return dict(zip(lines[::2], lines[1::2]))

    def _ctl(self, *words: str, check: bool = True):
        return self.machine.run("etcdctl", "--endpoints=http://127.0.0.1:2379", "--command-timeout=5s", *words,
                                env={"ETCDCTL_API": "3"}, seconds=20, check=check)


@dataclass(frozen=True)
class Docker:
    """The Docker engine of a host."""

    machine: Machine
    spec: LabSpec

    @property
    def release(self) -> releases.DockerRelease:
        """Which one it is."""
        return self.spec.release_of(self.machine.name)

    def start(self, seconds: float = 90) -> None:
        """Start dockerd as its unit file would, and wait until it answers."""
        self.machine.run("rm", "-f", "/run/docker.pid")  # a killed one leaves it behind; its number may be in use again
        self.machine.spawn("dockerd.log", *releases.command(self.machine, self.release), *self.options())
        wait_for(f"dockerd on {self.machine.name}", self.answers, seconds, 0.2)

    def options(self) -> list[str]:
        """Its command line after the name."""
        options = [f"--cgroup-parent={cgroup_parent(self.spec.name, self.machine.name)}"]
        if self.spec.cluster_store:
            address = self.spec.address(self.machine.name).ip
            options += [f"--cluster-store=etcd://{self.spec.etcd_url.removeprefix('http://')}",
                        f"--cluster-advertise={address}:2375"]
        return options + list(self.spec.docker_options)

    def answers(self) -> bool:
        """Whether its API is served."""
        return self.machine.run("docker", "version", seconds=5, check=False).returncode == 0

    def process(self) -> Process:
        """The running dockerd."""
        return releases.process(self.machine, self.release) or one_of(self.machine, "dockerd")

    def stop(self) -> None:
        """SIGTERM: containers are stopped, networks left in order."""
        self.process().end(60)

    def kill(self) -> None:
        """SIGKILL: nothing is left in order; containers keep running."""
        self.process().kill()

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def load_image(self) -> None:
        """Make the lab's image known, once."""
        if self.machine.run("docker", "image", "inspect", IMAGE, check=False).returncode != 0:
            self.machine.run("docker", "import", "--change", 'CMD ["sh"]', "-", IMAGE, stdin=busybox_tar())

    def containers(self) -> list[str]:
        """Ids of all containers, stopped ones too."""
        return self.machine.run("docker", "ps", "-aq", "--no-trunc").stdout.split()

    def remove_all_containers(self) -> None:
        """docker rm -f of every container."""
        if names := self.containers():
            self.machine.run("docker", "rm", "-f", *names, seconds=120, check=False)

    def address(self, container: str, network: str) -> str:
        """The IPv4 address of a container in a network."""
        text = self.machine.run("docker", "inspect", "-f", "{{json .NetworkSettings.Networks}}", container).stdout
        return json.loads(text)[network]["IPAddress"]


# How each part of calico-node is told in `ps` (published: scripts rely on it).
PARTS = {
    "driver": ("calico-driver", "calico_plugin.driver"),
    "agent": ("calico-agent", "calico_plugin.agent"),
    "bird": ("bird",),
}


@dataclass(frozen=True)
class CalicoNode:
    """The product on one host, started as a user would."""

    machine: Machine
    etcd_url: str

    def environment(self) -> dict[str, str]:
        """What the user exports in the shell."""
        return {"ETCD_ENDPOINTS": self.etcd_url}

    def run(self, **settings: str) -> str:
        """``calicoctl node run``; returns what it printed."""
        return self.machine.run("calicoctl", "node", "run", env={**self.environment(), **settings}, seconds=90).stdout

    def starts(self) -> bool:
        """Whether ``calicoctl node run`` works now."""
        done = self.machine.run("calicoctl", "node", "run", env=self.environment(), check=False, seconds=90)
        return done.returncode == 0

    def stop(self) -> str:
        """``calicoctl node stop``: traffic goes on."""
        return self.ctl("node", "stop")

    def ctl(self, *words: str, check: bool = True, seconds: float = 60) -> str:
        """Any calicoctl command on this host."""
        return self.machine.run("calicoctl", *words, env=self.environment(), check=check, seconds=seconds).stdout

    def part(self, name: str) -> list[Process]:
        """The processes of ``driver``, ``agent`` or ``bird`` (several with workers), the oldest first."""
        found = [one for one in self.machine.processes() if _is_part(one, PARTS[name])]
        return sorted(found, key=lambda one: one.started)

    def kill(self, name: str) -> list[Process]:
        """SIGKILL to every process of a part; returns those ended."""
        ended = self.part(name)
        for process in ended:
            process.send(signal.SIGKILL)
        return ended

    def established(self) -> list[str]:
        """Addresses of the BGP peers whose session is up, as ``calicoctl node status`` tells."""
        rows = [line for line in self.ctl("node", "status", check=False).splitlines() if "Established" in line]
        return [row.split("|")[1].strip() for row in rows]


_ASK = """
import http.client, socket, sys
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/docker/plugins/" + sys.argv[1])
connection = Unix("")
connection.request("POST", "/" + sys.argv[2], sys.argv[3])
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


def ask_driver(machine: Machine, method: str, body: dict[str, object]) -> tuple[int, dict]:
    """Call the driver as dockerd would; its status and answer."""
    socket = "calico-ipam.sock" if method.startswith("IpamDriver") else "calico.sock"
    said = machine.run("/usr/bin/python3", "-I", "-c", _ASK, socket, method, json.dumps(body)).stdout
    status, _, text = said.partition(" ")
    return int(status), json.loads(text)


def _is_part(process: Process, names: tuple[str, ...]) -> bool:
    """Whether a process is a part: its program, or the script or module that its Python runs, has one of the names.

    A supervisor's helper that merely has the name in a path (``s6-supervise calico-driver``) is not.
    """
    words = process.argv
    if not words or words[0].startswith("s6-") or "/s6-" in words[0]:
        return False
    programs = {words[0].rpartition("/")[2].removesuffix(":")}
    if programs & {"python", "python3", "python3.11"} or "python" in words[0]:
        programs |= {word.rpartition("/")[2] for word in words[1:4]}
    return any(program == name or program.startswith(name + ".") for program in programs for name in names)


def one_of(machine: Machine, program: str) -> Process:
    """The one process of a machine that runs ``program``."""
    found = [one for one in machine.processes() if one.argv[0].rpartition("/")[2] == program]
    assert len(found) == 1, f"{machine.name} runs {len(found)} of {program}"
    return found[0]
