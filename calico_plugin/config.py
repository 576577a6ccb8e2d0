"""Settings of all four programs: one frozen object from the environment, checked once, all problems reported together.

Names and rules are Calico's (node-and-cli 1.1): a `CALICO_` prefix on ETCD_* and DATASTORE_TYPE wins, an empty value counts as unset.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

DEFAULT_ENDPOINT = "http://127.0.0.1:2379"


@dataclass(frozen=True, slots=True)
class DatastoreSettings:
    """How to reach etcd. `source` tells a user where the endpoints came from (environment, file, default)."""

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    ca_cert_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password: str = ""
    source: str = "the default"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a program of this host needs to know. Paths are fields so that a test can move them."""

    datastore: DatastoreSettings
    node_name: str
    run_dir: Path
    lib_dir: Path
    log_dir: Path
    plugin_dir: Path
    docker_host: str
    scope: str
    interface_prefix: str
    create_profiles: bool
    label_endpoints: bool
    veth_mtu: int | None
    log_level: str
    metrics_port: int
    health_port: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        lib_dir = Path(environ.get("CALICO_LIB_DIR") or "/var/lib/calico")
        mtu = environ.get("CALICO_LIBNETWORK_VETH_MTU", "")
        return cls(
            datastore=datastore_from_env(environ),
            node_name=node_name(environ, lib_dir),
            run_dir=Path(environ.get("CALICO_RUN_DIR") or "/var/run/calico"),
            lib_dir=lib_dir,
            log_dir=Path(environ.get("CALICO_LOG_DIR") or "/var/log/calico"),
            plugin_dir=Path(environ.get("CALICO_PLUGIN_DIR") or "/run/docker/plugins"),
            docker_host=environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock",
            scope=environ.get("CALICO_LIBNETWORK_SCOPE") or "auto",
            interface_prefix=environ.get("CALICO_LIBNETWORK_IFPREFIX") or "cali",
            create_profiles=environ.get("CALICO_LIBNETWORK_CREATE_PROFILES", "").lower() != "false",
            label_endpoints=environ.get("CALICO_LIBNETWORK_LABEL_ENDPOINTS", "").lower() == "true",
            veth_mtu=int(mtu) if mtu else None,
            log_level=environ.get("CALICO_LOG_LEVEL") or "info",
            metrics_port=int(environ.get("FELIX_PROMETHEUSMETRICSPORT") or 9091),
            health_port=int(environ.get("FELIX_HEALTHPORT") or 9099),
        )


def datastore_from_env(environ: Mapping[str, str]) -> DatastoreSettings:
    def value(name: str) -> str:
        return environ.get(f"CALICO_{name}") or environ.get(name) or ""

    endpoints = tuple(part.strip() for part in value("ETCD_ENDPOINTS").split(",") if part.strip())
    return DatastoreSettings(
        endpoints=endpoints or (DEFAULT_ENDPOINT,),
        ca_cert_file=value("ETCD_CA_CERT_FILE"),
        cert_file=value("ETCD_CERT_FILE"),
        key_file=value("ETCD_KEY_FILE"),
        username=value("ETCD_USERNAME"),
        password=value("ETCD_PASSWORD"),
        source="ETCD_ENDPOINTS in the environment" if endpoints else "the default",
    )


def node_name(environ: Mapping[str, str], lib_dir: Path) -> str:
    """The one source of the node's name: NODENAME, the nodename file, HOSTNAME, the OS host name (the last two in lower case)."""
    given = environ.get("NODENAME", "").strip()
    if given:
        return given
    nodename_file = Path(environ.get("CALICO_NODENAME_FILE") or lib_dir / "nodename")
    if nodename_file.exists():
        stored = nodename_file.read_text().strip()
        if stored:
            return stored
    return (environ.get("HOSTNAME", "").strip() or socket.gethostname().strip()).lower()
