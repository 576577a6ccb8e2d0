"""What a lab consists of. Values only."""
from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

PREFIX_LENGTH = 24
GATEWAY = IPv4Interface("172.20.62.1/24")
ETCD = IPv4Interface("172.20.62.127/24")
# The first two are those of the seed experiment; hosts after them count up from .11 past anything used.
SEED_HOSTS = (IPv4Address("172.20.62.110"), IPv4Address("172.20.62.105"))
FURTHER_HOSTS_FROM = IPv4Address("172.20.62.11")
MAX_HOSTS = 60


@dataclass(frozen=True)
class DockerRelease:
    """One Docker engine that lab hosts can run.

    ``root`` is the folder of a debootstrapped system that holds dockerd and its client, or None for those of the
    machine. ``cluster_store`` tells whether this engine knows ``--cluster-store`` (gone in 23.0).
    """

    label: str
    root: Path | None = None
    cluster_store: bool = False


BOOKWORM = DockerRelease("20.10", cluster_store=True)


@dataclass(frozen=True)
class LabSpec:
    """Size and kind of a lab.

    ``cluster_store`` False gives hosts whose Docker knows nothing of the others (network scope local).
    ``own_pids`` False lets all hosts share the machine's PID namespace, as simpler labs do: what runs on one host then
    sees the processes of the others. ``mixed`` are the releases of the first hosts, where not all have ``release``.
    ``default_route`` False makes hosts without any default route. ``systemd`` True: the hosts boot with systemd, and
    keep the units that were installed on them.
    """

    name: str = "lab"
    hosts: int = 2
    cluster_store: bool = True
    own_pids: bool = True
    default_route: bool = True
    release: DockerRelease = BOOKWORM
    mixed: tuple[DockerRelease, ...] = ()
    docker_options: tuple[str, ...] = ()
    systemd: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.hosts <= MAX_HOSTS:
            raise ValueError(f"hosts={self.hosts}: a lab has 1 to {MAX_HOSTS} Docker hosts")
        if not self.name.replace("-", "").isalnum():
            raise ValueError(f"name={self.name!r}: letters, digits and dashes only")
        if self.cluster_store and not self.release.cluster_store:
            raise ValueError(f"Docker {self.release.label} has no cluster store; ask for cluster_store=False")

    def release_of(self, host: str) -> DockerRelease:
        """What a Docker host runs."""
        number = self.host_names.index(host)
        return self.mixed[number] if number < len(self.mixed) else self.release

    @property
    def host_names(self) -> tuple[str, ...]:
        """host1, host2, ..."""
        return tuple(f"host{number}" for number in range(1, self.hosts + 1))

    def address(self, host: str) -> IPv4Interface:
        """The address of a Docker host or of ``etcd`` on the fabric, with its prefix length."""
        if host == "etcd":
            return ETCD
        number = self.host_names.index(host)
        if number < len(SEED_HOSTS):
            plain = SEED_HOSTS[number]
        else:
            plain = FURTHER_HOSTS_FROM + (number - len(SEED_HOSTS))
        return IPv4Interface(f"{plain}/{PREFIX_LENGTH}")

    @property
    def etcd_url(self) -> str:
        """Client URL of the lab's etcd, as ETCD_ENDPOINTS wants it."""
        return f"http://{ETCD.ip}:2379"
