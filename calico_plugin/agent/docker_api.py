"""Docker's API as far as the agent needs it: networks, the endpoints of running containers, the event stream.

Only calls that take no container's lock, so none of them can wait for a driver call; the one exception, `called`, says
so. Every call has a time-out; errors leave as DockerError. The client is the Docker SDK.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Callable, Iterable, Iterator, Mapping, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from calico_plugin.errors import DockerBusy, DockerError, DockerTaken
from calico_plugin.model.docker import AddressRange, NetworkSpec

T = TypeVar("T")
SECONDS = 10.0
_PROBE_SECONDS = 1.0
# Docker looks for a plugin for 15 s.
_CREATE_SECONDS = 40.0
# Versions of the API: 28.0's.
_IPV6_ONLY = _ASKS_FROM_HOST = (1, 48)
_NO_GATEWAYS = ("0.0.0.0", "0.0.0.0/0", "::", "::/0")


@dataclass(frozen=True, slots=True)
class DockerNetwork:
    """A network as Docker lists it. `subnets` and `reserved` (address -> name) are those of its IPAM settings."""

    id: str
    name: str
    driver: str
    scope: str
    internal: bool
    ipv6: bool
    options: Mapping[str, str]
    subnets: tuple[str, ...]
    reserved: Mapping[str, str]
    # RFC 3339.
    created: str = ""
    # Made by an ordinary `docker network create`: no swarm's, none made from another's configuration.
    plain: bool = True
    spec: NetworkSpec = NetworkSpec()


@dataclass(frozen=True, slots=True)
class Container:
    """A container: its labels, and its endpoints as network name -> endpoint id."""

    id: str
    labels: Mapping[str, str]
    endpoints: Mapping[str, str]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Called:
    """What Docker calls a container's endpoint on a network, of whatever driver: the container's name, then aliases,
    short id, host name.
    """

    network: str
    endpoint: str
    names: tuple[str, ...]
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """`type` network or container; `action` create, destroy, connect, start…; `id` of the object."""

    type: str
    action: str
    id: str
    attributes: Mapping[str, str]


class DockerApi:
    """One connection's client; threads may share it. Constructing it asks Docker for its version."""

    def __init__(self, base_url: str, seconds: float = SECONDS) -> None:
        self._client = _mapped(lambda: docker.APIClient(base_url=base_url, version="auto", timeout=int(seconds)))

    def close(self) -> None:
        self._client.close()

    def networks(self) -> tuple[DockerNetwork, ...]:
        return tuple(_network(one) for one in _mapped(self._client.networks))

    def network(self, network_id: str) -> DockerNetwork | None:
        """None when Docker does not know it (any more)."""
        try:
            return _network(self._client.inspect_network(network_id))
        except NotFound:
            return None
        except (DockerException, requests.RequestException) as error:
            raise _error(error) from error

    def create_network(self, name: str, spec: NetworkSpec) -> str:
        """The id of the new network. Raises DockerTaken when Docker has one of that name."""
        body: dict[str, Any] = {
            "Name": name,
            "CheckDuplicate": True,
            "Driver": spec.driver,
            "Internal": spec.internal,
            "Attachable": spec.attachable,
            "EnableIPv6": spec.enable_ipv6,
            "Options": spec.options,
            "Labels": spec.labels,
            "IPAM": {"Driver": spec.ipam_driver, "Options": spec.ipam_options, "Config": _ranges(spec)},
        }
        if not spec.enable_ipv4:
            # The SDK's own call does not know this one.
            body["EnableIPv4"] = False
            if self._version < _IPV6_ONLY:
                raise DockerError("this Docker cannot make networks without IPv4 (from 28.0 on)")
        url = f"{self._client.base_url}/v{self._client.api_version}/networks/create"
        answer = _mapped(lambda: self._client.post(url, json=body, timeout=_CREATE_SECONDS))
        if not answer.ok:
            error = DockerTaken if answer.status_code == HTTPStatus.CONFLICT else DockerError
            raise error(f"Docker's API: {' '.join(answer.text.split())}")
        return str(answer.json()["Id"])

    def remove_network(self, network_id: str) -> None:
        """One that is gone already counts as removed. Raises DockerBusy while it has containers."""
        try:
            self._client.remove_network(network_id)
        except NotFound:
            return
        except APIError as error:
            raise (DockerBusy if "active endpoints" in str(error) else DockerError)(str(_error(error))) from error
        except (DockerException, requests.RequestException) as error:
            raise _error(error) from error

    def network_users(self, network_id: str) -> tuple[str, ...]:
        """Names of the running containers on a network."""
        try:
            found = self._client.inspect_network(network_id).get("Containers") or {}
        except (DockerException, requests.RequestException):
            return ()
        return tuple(sorted((one or {}).get("Name", "?") for one in found.values()))

    def containers(self, container_id: str = "") -> tuple[Container, ...]:
        """Running containers, or the one with this id."""
        filters = {"id": container_id} if container_id else {}
        return tuple(_container(one) for one in _mapped(lambda: self._client.containers(filters=filters)))

    def containers_named(self, wanted: Iterable[str]) -> tuple[Container, ...]:
        """Of these names, running or not; also such as are just being started."""
        patterns = [f"^/{name.replace('.', '[.]')}$" for name in wanted]
        return tuple(
            _container(one) for one in _mapped(lambda: self._client.containers(all=True, filters={"name": patterns})))

    def attached(self, network_id: str) -> Mapping[str, str]:
        """Endpoint id -> name of its container, of all endpoints of a network that this Docker knows; those of a
        container that is being started are there as soon as their creation is answered.
        """
        try:
            found = self._client.inspect_network(network_id).get("Containers") or {}
        except NotFound:
            return {}
        except (DockerException, requests.RequestException) as error:
            raise _error(error) from error
        return {one.get("EndpointID", ""): one.get("Name", "") for one in found.values()}

    def called(self, container_id: str) -> tuple[Called, ...]:
        """The names of a container, network by network; none when it is gone.

        Takes the container's lock: during its start this waits for driver calls. Only for a thread for which nobody
        waits.
        """
        try:
            return _called(self._client.inspect_container(container_id))
        except NotFound:
            return ()
        except (DockerException, requests.RequestException) as error:
            raise _error(error) from error

    @property
    def asks_from_host(self) -> bool:
        """Whether containers' DNS queries leave from the host's network namespace, not from the containers' own."""
        return self._version >= _ASKS_FROM_HOST

    @property
    def _version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self._client.api_version.split("."))

    def has_cluster_store(self) -> bool:
        return bool(_mapped(self._client.info).get("ClusterStore"))

    def network_plugins(self) -> tuple[str, ...]:
        """Names of the network drivers that are loaded; managed plugins that are enabled always are."""
        return tuple((_mapped(self._client.info).get("Plugins") or {}).get("Network") or ())

    def events(self, filters: Mapping[str, list[str]]) -> EventStream:
        """Events from now on."""
        return EventStream(_mapped(lambda: self._client.events(decode=True, filters=dict(filters))))


class EventStream:
    """Iterates until Docker ends the stream; `close` ends it from another thread."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Event]:
        try:
            for raw in self._stream:
                actor = raw.get("Actor") or {}
                attributes = {key: str(value) for key, value in (actor.get("Attributes") or {}).items()}
                yield Event(raw.get("Type", ""), raw.get("Action", ""), actor.get("ID", ""), attributes)
        except (DockerException, requests.RequestException, OSError, ValueError) as error:
            raise _error(error) from error

    def close(self) -> None:
        try:
            self._stream.close()
        except Exception:  # the SDK reaches into urllib3 here, and what it finds depends on how far the stream came
            pass


def answers(base_url: str) -> bool:
    """Whether somebody listens on Docker's socket; cheap, for a host where Docker is absent or restarts."""
    if not base_url.startswith("unix://"):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(base_url.removeprefix("unix://"))
        except OSError:
            return False
    return True


def _mapped(call: Callable[[], T]) -> T:
    try:
        return call()
    except (DockerException, requests.RequestException) as error:
        raise _error(error) from error


def _error(error: Exception) -> DockerError:
    return DockerError(f"Docker's API: {' '.join(str(error).split()) or type(error).__name__}")


def _network(raw: Mapping[str, Any]) -> DockerNetwork:
    settings = (raw.get("IPAM") or {}).get("Config") or []
    reserved: dict[str, str] = {}
    for one in settings:
        auxiliary = one.get("AuxiliaryAddresses") or {}
        reserved.update((address.split("/")[0], name) for name, address in auxiliary.items())
        if one.get("Gateway"):
            reserved[one["Gateway"].split("/")[0]] = "gateway"
    return DockerNetwork(
        id=raw["Id"],
        name=raw["Name"],
        driver=raw.get("Driver", ""),
        scope=raw.get("Scope", ""),
        internal=bool(raw.get("Internal")),
        ipv6=bool(raw.get("EnableIPv6")),
        options=raw.get("Options") or {},
        subnets=tuple(one["Subnet"] for one in settings if one.get("Subnet")),
        reserved={address: name for address, name in reserved.items() if address not in ("0.0.0.0", "::")},
        created=raw.get("Created") or "",
        plain=not (raw.get("Ingress") or raw.get("ConfigOnly") or (raw.get("ConfigFrom") or {}).get("Network")),
        spec=_spec(raw),
    )


def _spec(raw: Mapping[str, Any]) -> NetworkSpec:
    ipam = raw.get("IPAM") or {}
    return NetworkSpec(
        driver=raw.get("Driver") or "",
        ipam_driver=ipam.get("Driver") or "",
        ipam_options=ipam.get("Options"),
        ranges=tuple(_range(one) for one in ipam.get("Config") or () if not _automatic(one)),
        options=raw.get("Options"),
        labels=raw.get("Labels"),
        internal=bool(raw.get("Internal")),
        attachable=bool(raw.get("Attachable")),
        enable_ipv4=bool(raw.get("EnableIPv4", True)),
        enable_ipv6=bool(raw.get("EnableIPv6")),
    )


def _range(one: Mapping[str, Any]) -> AddressRange:
    gateway, auxiliary = one.get("Gateway") or "", one.get("AuxiliaryAddresses") or {}
    return AddressRange(
        subnet=one.get("Subnet") or "",
        ip_range=one.get("IPRange") or "",
        gateway="" if gateway in _NO_GATEWAYS else gateway.split("/")[0],
        auxiliary={name: address.split("/")[0] for name, address in auxiliary.items()},
    )


def _automatic(one: Mapping[str, Any]) -> bool:
    """Docker shows what our IPAM driver answered, where the user gave no subnet: 0.0.0.0/0, or a pool of IPv6 with the
    gateway that is none. (With a subnet of the user's it shows the user's words.)
    """
    subnet = one.get("Subnet") or "/0"
    return subnet.endswith("/0") or ":" in subnet and one.get("Gateway") in _NO_GATEWAYS


def _ranges(spec: NetworkSpec) -> list[dict[str, Any]]:
    found = []
    for one in spec.ranges:
        words: dict[str, Any] = {"Subnet": one.subnet, "IPRange": one.ip_range, "Gateway": one.gateway}
        if one.auxiliary:
            words["AuxiliaryAddresses"] = dict(one.auxiliary)
        found.append({name: value for name, value in words.items() if value})
    return found


def _container(raw: Mapping[str, Any]) -> Container:
    networks = (raw.get("NetworkSettings") or {}).get("Networks") or {}
    endpoints = {name: (one or {}).get("EndpointID", "") for name, one in networks.items()}
    # Those with a second slash are what other containers call it (`--link`).
    names = [name[1:] for name in raw.get("Names") or () if "/" not in name[1:]]
    found = {name: one for name, one in endpoints.items() if one}
    return Container(raw["Id"], raw.get("Labels") or {}, found, next(iter(names), ""))


def _called(raw: Mapping[str, Any]) -> tuple[Called, ...]:
    """Docker's resolver knows these; from 26.0 on it lists them (`DNSNames`)."""
    name, host = raw["Name"].removeprefix("/"), (raw.get("Config") or {}).get("Hostname") or ""
    found = []
    for network, one in ((raw.get("NetworkSettings") or {}).get("Networks") or {}).items():
        if one and one.get("EndpointID"):
            more = one.get("DNSNames") or (*(one.get("Aliases") or ()), raw["Id"][:12], host)
            names = tuple(dict.fromkeys(filter(None, (name, *more))))
            addresses = tuple(filter(None, (one.get("IPAddress"), one.get("GlobalIPv6Address"))))
            found.append(Called(network, one["EndpointID"], names, addresses))
    return tuple(found)
