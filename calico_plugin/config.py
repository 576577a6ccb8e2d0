"""Settings of all four programs: one frozen object from the environment, checked once, all problems reported together.

Names and rules are Calico's (node-and-cli 1.1): a `CALICO_` prefix on ETCD_* and DATASTORE_TYPE wins, an empty value
counts as unset. Nothing here raises for a bad value: it is replaced by the default and kept in `problems`; a root that
starts a program calls `Settings.checked`, which raises one error that lists them all.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Callable, Iterator, Mapping, TypeVar

from calico_plugin.errors import InvalidInput
from calico_plugin.model import autodetect, duration

T = TypeVar("T")

DEFAULT_ENDPOINT = "http://127.0.0.1:2379"
AUTODETECT, NONE = "autodetect", "none"
DEFAULT_POOL4 = "192.168.0.0/16"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_FALSE = ("false", "0", "no", "n", "f")
_ENCAPSULATION = {
    **dict.fromkeys(("", "off", "never"), "Never"),
    **dict.fromkeys(("crosssubnet", "cross-subnet"), "CrossSubnet"),
    "always": "Always",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One bad setting: which variable, what it says, what would be right."""

    variable: str
    value: str
    right: str

    def __str__(self) -> str:
        return f"{self.variable} = {self.value!r}: {self.right}"


class BadSettings(InvalidInput):
    """All bad settings together; the text has one line a problem."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        first = problems[0]
        super().__init__(first.variable, first.value, first.right)
        self.args = ("\n".join(str(problem) for problem in problems),)


@dataclass(frozen=True, slots=True)
class DatastoreSettings:
    """How to reach etcd. `source` tells a user where the endpoints came from (environment, file, default)."""

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    ca_cert_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    source: str = "the default"

    @property
    def is_default(self) -> bool:
        """Nobody said where etcd is: calico-node may start one of its own."""
        return self.source == "the default"


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """A default pool of one IP version. `cidr` is "" (choose), "none" (make none) or a network."""

    version: int
    cidr: str
    block_size: int
    ipip_mode: str
    vxlan_mode: str
    nat_outgoing: bool
    disable_bgp_export: bool
    node_selector: str


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What calico-node's start-up needs. `ip`/`ip6` are "", "autodetect", "none" or an address, with or without prefix.

    Times are in seconds; `as_number` None means 'none given'; `etcd_listen` None means 'decide by the node's address'.
    `managed`: we are a managed plugin of Docker's, which must open its socket within seconds and must not give up.
    """

    ip: str = ""
    ip6: str = ""
    ip_method: autodetect.Method = autodetect.Method()
    ip6_method: autodetect.Method = autodetect.Method()
    poll_interval: float = 60.0
    check_conflicts: bool = True
    as_number: int | None = None
    router_id: str = ""
    default_pools: bool = True
    pools: tuple[PoolSettings, ...] = ()
    backend: str = "bird"
    wait_for_datastore: bool = False
    cluster_type: tuple[str, ...] = ()
    ipv6_support: bool = True
    file_logging: bool = True
    forward_logs: bool = True
    run_agent: bool = True
    run_driver: bool = True
    etcd_listen: tuple[str, ...] | None = None
    start_timeout: float = 60.0
    managed: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """What a program of this host needs to know. Paths are fields so that a test can move them.

    `host_plugin_dir`: where the driver opens its sockets a second time, for a managed plugin: the host's plugin folder.
    """

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
    nodename_file: Path = Path("/var/lib/calico/nodename")
    metrics_enabled: bool = True
    metrics_host: str = ""
    health_enabled: bool = True
    health_host: str = "localhost"
    secrets_dir: Path = Path("/etc/calico/secrets")
    docker_drivers: tuple[str, ...] = ("calico", "calico:latest")
    # Whether networks are carried to the Docker of all hosts: auto, where no cluster store does it.
    replicate: str = "auto"
    # Whether names of containers are told to all hosts, and answered here: likewise.
    names: str = "auto"
    host_plugin_dir: Path | None = None
    # What the agent reports to the datastore; None: as FelixConfiguration says.
    reporting_interval: float | None = None
    endpoint_reporting: bool | None = None
    node: NodeSettings = NodeSettings()
    bad: tuple[Problem, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Never raises; what does not parse has its default and stands in `problems()`."""
        read = _Reader(environ)
        lib_dir = Path(read.text("CALICO_LIB_DIR", "/var/lib/calico"))
        settings = cls(
            datastore=_datastore(read),
            node_name=_checked_node_name(read, lib_dir),
            run_dir=Path(read.text("CALICO_RUN_DIR", "/var/run/calico")),
            lib_dir=lib_dir,
            log_dir=Path(read.text("CALICO_LOG_DIR", "/var/log/calico")),
            plugin_dir=Path(read.text("CALICO_PLUGIN_DIR", "/run/docker/plugins")),
            docker_host=read.text("DOCKER_HOST", "unix:///var/run/docker.sock"),
            scope=read.choice("CALICO_LIBNETWORK_SCOPE", ("auto", "global", "local"), "auto"),
            interface_prefix=read.parsed("CALICO_LIBNETWORK_IFPREFIX", _interface_prefix, "cali"),
            create_profiles=read.text("CALICO_LIBNETWORK_CREATE_PROFILES").lower() != "false",
            label_endpoints=read.text("CALICO_LIBNETWORK_LABEL_ENDPOINTS").lower() == "true",
            veth_mtu=read.parsed("CALICO_LIBNETWORK_VETH_MTU", _within(68, 65535), None),
            log_level=_log_level(read),
            metrics_port=read.parsed("FELIX_PROMETHEUSMETRICSPORT", _within(1, 65535), 9091),
            health_port=read.parsed("FELIX_HEALTHPORT", _within(1, 65535), 9099),
            nodename_file=_nodename_file(environ, lib_dir),
            metrics_enabled=read.boolean("FELIX_PROMETHEUSMETRICSENABLED", True),
            metrics_host=read.text("FELIX_PROMETHEUSMETRICSHOST"),
            health_enabled=read.boolean("FELIX_HEALTHENABLED", True),
            health_host=read.text("FELIX_HEALTHHOST", "localhost"),
            secrets_dir=Path(read.text("CALICO_SECRETS_DIR", "/etc/calico/secrets")),
            docker_drivers=_drivers(read),
            replicate=read.choice("CALICO_LIBNETWORK_REPLICATE", ("auto", "true", "false"), "auto"),
            names=read.choice("CALICO_LIBNETWORK_DNS", ("auto", "true", "false"), "auto"),
            host_plugin_dir=read.parsed("CALICO_HOST_PLUGIN_DIR", Path, None),
            reporting_interval=read.parsed("FELIX_REPORTINGINTERVALSECS", _seconds, None),
            endpoint_reporting=_flag(read, "FELIX_ENDPOINTREPORTINGENABLED"),
            node=_node(read),
            bad=(),
        )
        object.__setattr__(settings, "bad", tuple(read.problems))
        return settings

    @classmethod
    def checked(cls, environ: Mapping[str, str]) -> Settings:
        """For the roots: raises BadSettings, which lists every problem."""
        settings = cls.from_env(environ)
        if settings.bad:
            raise BadSettings(settings.bad)
        return settings

    def problems(self) -> tuple[Problem, ...]:
        """Every bad setting."""
        return self.bad


class _Reader:
    """Reads variables and collects what is wrong with them; an empty value counts as unset."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[Problem] = []

    def text(self, name: str, default: str = "") -> str:
        return self.environ.get(name, "").strip() or default

    def etcd(self, name: str) -> str:
        """A datastore variable: the form with the prefix wins."""
        return self.text(f"CALICO_{name}") or self.text(name)

    def boolean(self, name: str, default: bool) -> bool:
        """Calico's rule: what exists is false only for a few words, even the empty text is true."""
        value = self.environ.get(name)
        return default if value is None else value.strip().lower() not in _FALSE

    def choice(self, name: str, words: tuple[str, ...], default: str) -> str:
        value = self.text(name, default)
        if value in words:
            return value
        self.wrong(name, value, f"use {', '.join(words[:-1])} or {words[-1]}")
        return default

    def parsed(self, name: str, parse: Callable[[str], T], default: T | None) -> T:
        """`parse` raises ValueError with what would be right."""
        value = self.text(name)
        if value:
            try:
                return parse(value)
            except ValueError as error:
                self.wrong(name, value, str(error))
        return default  # type: ignore[return-value]

    def wrong(self, name: str, value: str, right: str) -> None:
        self.problems.append(Problem(name, value, right))


class _Names(Mapping[str, str]):
    """An empty environment that writes down what it is asked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def variables() -> tuple[str, ...]:
    """Names of all variables that are read here, sorted."""
    names = _Names()
    Settings.from_env(names)
    return tuple(sorted(names.asked))


def datastore_from_env(environ: Mapping[str, str]) -> DatastoreSettings:
    """How to reach etcd, from the environment alone; unchecked."""
    return _datastore(_Reader(environ))


def _datastore(read: _Reader) -> DatastoreSettings:
    endpoints = tuple(part.strip() for part in read.etcd("ETCD_ENDPOINTS").split(",") if part.strip())
    if not endpoints and read.text("ETCD_AUTHORITY"):
        endpoints = (f"{read.text('ETCD_SCHEME', 'http')}://{read.text('ETCD_AUTHORITY')}",)
    kind = read.etcd("DATASTORE_TYPE")
    if kind not in ("", "etcdv3"):
        read.wrong("DATASTORE_TYPE", kind, "only etcdv3 is offered here")
    found = DatastoreSettings(
        endpoints=endpoints or (DEFAULT_ENDPOINT,),
        ca_cert_file=read.etcd("ETCD_CA_CERT_FILE"),
        cert_file=read.etcd("ETCD_CERT_FILE"),
        key_file=read.etcd("ETCD_KEY_FILE"),
        username=read.etcd("ETCD_USERNAME"),
        password=read.etcd("ETCD_PASSWORD"),
        source="ETCD_ENDPOINTS in the environment" if endpoints else "the default",
    )
    _check_datastore(read, found)
    return found


def _check_datastore(read: _Reader, found: DatastoreSettings) -> None:
    for endpoint in found.endpoints:
        if not re.fullmatch(r"https?://[^\s/:]+(:\d+)?/?|https?://\[[0-9a-fA-F:]+\](:\d+)?/?", endpoint):
            right = "write each as http://HOST:PORT or https://HOST:PORT, with commas between"
            read.wrong("ETCD_ENDPOINTS", endpoint, right)
    if bool(found.cert_file) != bool(found.key_file):
        missing = "ETCD_CERT_FILE" if found.key_file else "ETCD_KEY_FILE"
        read.wrong(missing, "", "ETCD_CERT_FILE and ETCD_KEY_FILE go together: set both or none")
    if bool(found.username) != bool(found.password):
        missing = "ETCD_USERNAME" if found.password else "ETCD_PASSWORD"
        read.wrong(missing, "", "ETCD_USERNAME and ETCD_PASSWORD go together: set both or none")
    for name, path in (
        ("ETCD_CA_CERT_FILE", found.ca_cert_file),
        ("ETCD_CERT_FILE", found.cert_file),
        ("ETCD_KEY_FILE", found.key_file),
    ):
        if path and not Path(path).is_file():
            read.wrong(name, path, "there is no such file")


def _nodename_file(environ: Mapping[str, str], lib_dir: Path) -> Path:
    return Path(environ.get("CALICO_NODENAME_FILE") or lib_dir / "nodename")


def node_name(environ: Mapping[str, str], lib_dir: Path) -> str:
    """The one source of the node's name: NODENAME, the nodename file, HOSTNAME, the OS host name (in lower case).

    Raises InvalidInput when the file is there but cannot be read.
    """
    return node_name_and_source(environ, lib_dir)[0]


def node_name_and_source(environ: Mapping[str, str], lib_dir: Path) -> tuple[str, str]:
    """The name, and in words where it came from."""
    given = environ.get("NODENAME", "").strip()
    if given:
        return given, "NODENAME in the environment"
    path = _nodename_file(environ, lib_dir)
    try:
        stored = path.read_text().strip()
    except FileNotFoundError:
        stored = ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("CALICO_NODENAME_FILE", str(path), f"the file cannot be read: {error}") from error
    if stored:
        return stored, f"the file {path}"
    from_shell = environ.get("HOSTNAME", "").strip().lower()
    if from_shell:
        return from_shell, "HOSTNAME in the environment"
    return socket.gethostname().strip().lower(), "the host's name"


def _checked_node_name(read: _Reader, lib_dir: Path) -> str:
    try:
        name, source = node_name_and_source(read.environ, lib_dir)
    except InvalidInput as error:
        read.wrong(error.field, str(error.value), error.hint)
        return socket.gethostname().strip().lower()
    if len(name) > 253 or not _NAME.fullmatch(name):
        hint = f"a node's name has lower-case letters, digits, '-' and '.'; this one is from {source}"
        read.wrong("NODENAME", name, hint + ("" if "NODENAME" in source else "; set NODENAME"))
    return name


def _log_level(read: _Reader) -> str:
    words = ("debug", "info", "warning", "error", "fatal", "none")
    names = {"warn": "warning", "critical": "fatal", "panic": "fatal"}
    for name in ("CALICO_LOG_LEVEL", "CALICO_STARTUP_LOGLEVEL", "FELIX_LOGSEVERITYSCREEN"):
        value = read.text(name).lower()
        value = names.get(value, value)
        if value in words:
            return value
        if value:
            read.wrong(name, value, f"use one of {', '.join(words)}")
    return "debug" if read.text("CALICO_DEBUG").lower() == "true" else "info"


def _flag(read: _Reader, name: str) -> bool | None:
    return read.boolean(name, True) if read.text(name) else None


def _drivers(read: _Reader) -> tuple[str, ...]:
    """Names under which Docker may know the network driver: a socket's, and a managed plugin's, which has a tag."""
    names = [part.strip() for part in read.text("CALICO_LIBNETWORK_DRIVER_NAMES").split(",") if part.strip()]
    return tuple(names) or ("calico", "calico:latest")


def _within(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise ValueError(f"a number from {low} to {high}")
        return int(text)

    return parse


def _interface_prefix(text: str) -> str:
    # Docker appends a number, and the kernel has room for 15 characters.
    if not re.fullmatch(r"[A-Za-z0-9]{1,11}", text):
        raise ValueError("up to 11 letters and digits")
    return text


def _node(read: _Reader) -> NodeSettings:
    seconds = _seconds_above_zero
    pools = read.text("NO_DEFAULT_POOLS").lower() != "true"
    for name in ("CALICO_IPV4POOL_CIDR", "CALICO_IPV6POOL_CIDR"):
        if not pools and read.text(name):
            read.wrong(name, read.text(name), "NO_DEFAULT_POOLS=true says that no pool is made: drop one of the two")
    return NodeSettings(
        ip=read.parsed("IP", _address(4), ""),
        ip6=read.parsed("IP6", _address(6), ""),
        ip_method=read.parsed("IP_AUTODETECTION_METHOD", autodetect.parse, autodetect.Method()),
        ip6_method=read.parsed("IP6_AUTODETECTION_METHOD", autodetect.parse, autodetect.Method()),
        poll_interval=read.parsed("AUTODETECT_POLL_INTERVAL", seconds, 60.0),
        check_conflicts=read.text("DISABLE_NODE_IP_CHECK") != "true",
        as_number=read.parsed("AS", _as_number, None),
        router_id=read.parsed("CALICO_ROUTER_ID", _router_id, ""),
        default_pools=pools,
        pools=(_pool(read, 4, 26, 20, 32), _pool(read, 6, 122, 116, 128)),
        backend=_backend(read),
        wait_for_datastore=read.text("WAIT_FOR_DATASTORE") == "true",
        cluster_type=tuple(part.strip() for part in read.text("CLUSTER_TYPE").split(",") if part.strip()),
        ipv6_support=read.boolean("FELIX_IPV6SUPPORT", True),
        file_logging=read.text("CALICO_DISABLE_FILE_LOGGING").lower() != "true",
        forward_logs=read.boolean("CALICO_FORWARD_LOGS", True),
        run_agent=not read.text("CALICO_DISABLE_FELIX"),
        run_driver=read.text("CALICO_LIBNETWORK_ENABLED", "true").lower() != "false",
        etcd_listen=read.parsed("CALICO_ETCD_LISTEN", _addresses, None),
        start_timeout=read.parsed("CALICO_START_TIMEOUT", seconds, 60.0),
        managed=read.text("CALICO_MANAGED_PLUGIN").lower() == "true",
    )


def _pool(read: _Reader, version: int, size: int, smallest: int, largest: int) -> PoolSettings:
    start = f"CALICO_IPV{version}POOL_"
    return PoolSettings(
        version=version,
        cidr=read.parsed(start + "CIDR", _pool_cidr(version), ""),
        block_size=read.parsed(start + "BLOCK_SIZE", _within(smallest, largest), size),
        ipip_mode=read.parsed(start + "IPIP", _encapsulation, "Never") if version == 4 else "Never",
        vxlan_mode=read.parsed(start + "VXLAN", _encapsulation, "Never"),
        nat_outgoing=read.boolean(start + "NAT_OUTGOING", version == 4),
        disable_bgp_export=read.boolean(start + "DISABLE_BGP_EXPORT", False),
        node_selector=read.text(start + "NODE_SELECTOR", "all()"),
    )


def _backend(read: _Reader) -> str:
    legacy = read.text("CALICO_NETWORKING")
    if legacy and not read.text("CALICO_NETWORKING_BACKEND"):
        return NONE if legacy.lower() == "false" else "bird"
    return read.choice("CALICO_NETWORKING_BACKEND", ("bird", "vxlan", NONE), "bird")


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError("a number of seconds, 0 for none")
    return float(text)


def _seconds_above_zero(text: str) -> float:
    found = duration.seconds(text)
    if found <= 0:
        raise ValueError("a time above 0, such as 60s or 1m30s")
    return found


def _encapsulation(text: str) -> str:
    if text.lower() not in _ENCAPSULATION:
        raise ValueError("use off, always or cross-subnet")
    return _ENCAPSULATION[text.lower()]


def _as_number(text: str) -> int:
    high, dot, low = text.partition(".")
    parts, limit = ((high, low), 65536) if dot else ((high,), 1 << 32)
    if not all(part.isdecimal() and int(part) < limit for part in parts):
        raise ValueError("an AS number is 0 to 4294967295, or two numbers below 65536 with a dot between")
    return int(high) * 65536 + int(low) if dot else int(high)


def _router_id(text: str) -> str:
    if text == "hash":
        return text
    try:
        if ip_address(text).version == 4:
            return text
    except ValueError:
        pass
    raise ValueError("use four numbers with dots, or hash")


def _address(version: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text in (AUTODETECT, NONE):
            return text
        try:
            found = ip_interface(text)
        except ValueError:
            found = None
        if found is None or found.version != version:
            raise ValueError(f"use autodetect, none, or an IPv{version} address with or without its prefix length")
        return text

    return parse


def _pool_cidr(version: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() == NONE:
            return NONE
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            network = None
        if network is None or network.version != version or "/" not in text:
            example = DEFAULT_POOL4 if version == 4 else "fd80::/48"
            raise ValueError(f"use an IPv{version} network such as {example}, or none")
        return str(network)

    return parse


def _addresses(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(ip_address(part.strip())) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("a list of this host's addresses, with commas between") from None
