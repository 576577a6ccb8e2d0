"""Brings a whole lab up and down.

The fabric is one bridge in a machine of its own, which is also the gateway of all: the 'rest of the network'.
"""
from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from tests.lab import state
from tests.lab.machine import Machine, boot
from tests.lab.services import CalicoNode, Docker, Etcd
from tests.lab.spec import GATEWAY, LabSpec

FABRIC = "fabric"
ETCD = "etcd"
# What keeps its content while a machine is switched off, as a disk would: folder on the disk, path on the machine.
DISK = (("docker", "/var/lib/docker"), ("lib-calico", "/var/lib/calico"), ("etc-calico", "/etc/calico"),
        ("etcd", "/var/lib/etcd-lab"))

# A host's network is there a moment after its start, as with DHCP.
SYSTEMD_FILES = {
    "/etc/systemd/system/lab-network.service":
        "[Unit]\nDefaultDependencies=no\nBefore=network-online.target\n"
        "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'until ip route get 172.20.62.1; do sleep 0.1; done'\n",
    "/etc/systemd/system/network-online.target.d/lab.conf": "[Unit]\nWants=lab-network.service\n",
}

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Progress that nobody wants to see."""


@dataclass
class Lab:
    """A running lab. Make one with ``up`` or ``attach``."""

    spec: LabSpec
    machines: dict[str, Machine] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Machine:
        """A machine by its name: host1, host2, ..., etcd, fabric."""
        try:
            return self.machines[name]
        except KeyError:
            raise KeyError(f"no machine {name!r} in this lab; there are {', '.join(self.machines)}") from None

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the Docker hosts."""
        return self.spec.host_names

    @property
    def logs(self) -> Path:
        """Folder of all logs, one folder a machine below it."""
        return state.folder(self.spec.name) / "logs"

    @property
    def etcd(self) -> Etcd:
        """The datastore."""
        return Etcd(self[ETCD], self.spec.etcd_url)

    def docker(self, host: str) -> Docker:
        """The Docker engine of a host."""
        return Docker(self[host], self.spec)

    def node(self, host: str) -> CalicoNode:
        """calico-node of a host."""
        return CalicoNode(self[host], self.spec.etcd_url)

    # -- bringing up ---------------------------------------------------------------------------------------------
    def boot(self, name: str) -> Machine:
        """Switch a machine on and connect it to the fabric; no service is started."""
        self.machines[name] = machine = self._boot(name)
        if name == FABRIC:
            _make_bridge(machine)
        else:
            self._connect(machine)
        if (state.folder(self.spec.name) / "state.json").exists():
            state.save(self.spec, self.machines)  # it was up before, with another process 1
        return machine

    def start_host(self, name: str) -> None:
        """A Docker host with its engine running and the image loaded."""
        self.boot(name)
        docker = self.docker(name)
        docker.start()
        docker.load_image()

    def _boot(self, name: str) -> Machine:
        place = state.folder(self.spec.name)
        disk, logs = place / "disks" / name, place / "logs" / name
        binds = [(str(disk / source), target) for source, target in DISK]
        (logs / "calico").mkdir(parents=True, exist_ok=True)
        binds.append((str(logs / "calico"), "/var/log/calico"))
        known = [(ETCD, self.spec.address(ETCD).ip), *((host, self.spec.address(host).ip) for host in self.hosts)]
        files = {
            "/etc/hostname": f"{name}\n",
            "/etc/hosts": "127.0.0.1 localhost\n" + "".join(f"{ip} {host}\n" for host, ip in known),
            "/etc/resolv.conf": f"nameserver {GATEWAY.ip}\noptions timeout:1 attempts:1\n",
            "/etc/docker/daemon.json": "{}\n",
        }
        if self.spec.systemd and name in self.hosts:
            binds.append((str(disk / "units"), "/etc/systemd/system"))
            parent = state.cgroup_parent(self.spec.name, name)
            return boot(self.spec.name, name, disk, logs, binds, {**files, **SYSTEMD_FILES}, systemd=parent)
        return boot(self.spec.name, name, disk, logs, binds, files, self.spec.own_pids)

    def _connect(self, machine: Machine) -> None:
        fabric = self[FABRIC]
        fabric.run("ip", "link", "del", machine.name, check=False)  # of the machine's life before a power cut
        _run_outside("ip", "link", "add", "eth0", "netns", str(machine.init.pid), "type", "veth",
                     "peer", "name", machine.name, "netns", str(fabric.init.pid))
        fabric.run("ip", "link", "set", machine.name, "master", "br0", "up")
        route = f"ip route add default via {GATEWAY.ip}" if self.spec.default_route else "true"
        machine.shell(f"ip link set lo up && ip address add {self.spec.address(machine.name)} dev eth0 && "
                      f"ip link set eth0 up && {route}")

    # -- taking down ---------------------------------------------------------------------------------------------
    def down(self, keep_logs: bool = True) -> None:
        """Switch everything off and remove its disks."""
        state.clear(self.spec.name, keep_logs)


def _make_bridge(machine: Machine) -> None:
    machine.shell(f"ip link set lo up && ip link add br0 type bridge && ip address add {GATEWAY} dev br0 && "
                  "ip link set br0 up && echo 1 > /proc/sys/net/ipv4/ip_forward")


def _run_outside(*argv: str) -> None:
    subprocess.run(argv, check=True)


def up(spec: LabSpec, progress: Progress = silent) -> Lab:
    """Build a lab: fabric, etcd, hosts with Docker running. What an earlier one of that name left is taken down first.

    The caller should hold ``state.claim(spec.name)``. On failure the machines stay for a look; ``down`` ends them.
    """
    if left := state.clear(spec.name, keep_logs=False):
        progress(f"ended {len(left)} processes that an earlier run of this lab left")
    lab = Lab(spec)
    progress("fabric: one bridge, 172.20.62.0/24")
    lab.boot(FABRIC)
    progress(f"etcd: {spec.etcd_url}")
    lab.boot(ETCD)
    lab.etcd.start()
    progress("Docker hosts: " + ", ".join(f"{host} {spec.address(host).ip}" for host in spec.host_names))
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lab.start_host, spec.host_names))
    state.save(spec, lab.machines)
    return lab


def attach(name: str) -> Lab:
    """The running lab of a name, built by this or another process; LookupError says when there is none."""
    try:
        spec, machines = state.load(name)
    except FileNotFoundError:
        raise LookupError(f"no lab named {name!r} is up") from None
    lab = Lab(spec, machines)
    gone = [one.name for one in machines.values() if not one.running()]
    if gone:
        raise LookupError(f"the lab {name!r} has lost {', '.join(gone)}; `python -m tests.lab down` clears it")
    return lab
