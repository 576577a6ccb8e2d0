"""What `docker network create` takes besides its own flags: `--opt` and `--ipam-opt`, by name and value.

Each name may have Calico's prefix (`org.projectcalico.pool-routes` is `pool-routes`), as labels of containers do. An
unknown one is refused with the known ones. Options that Docker carries out by itself, whatever the driver, pass.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from calico_plugin.errors import InvalidInput, Unsupported

PREFIX = "org.projectcalico."

# `docker network create --opt`: the whole list, as a refusal shows it.
OPTION_MTU = "com.docker.network.driver.mtu"
OPTION_POOL_ROUTES = "pool-routes"
OPTION_DEFAULT_ROUTE = "default-route"
NETWORK_OPTIONS = (OPTION_MTU, OPTION_DEFAULT_ROUTE, OPTION_POOL_ROUTES)
# How Docker 28 and newer announce a container's addresses; checked by Docker, and seen by every driver.
_DOCKERS_OWN = ("com.docker.network.advertise_addr_nmsgs", "com.docker.network.advertise_addr_ms")
# `docker network create --ipam-opt`
IPAM_OPTION_POOL = "pool"
IPAM_OPTION_INSIDE = "inside-pool"
IPAM_OPTIONS = (IPAM_OPTION_INSIDE, IPAM_OPTION_POOL)

_MTU_MIN, _MTU_MAX = 576, 65535


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """`--opt` values. `mtu` None: as the host's own uplink. `default_route` False: Docker's bridge keeps it."""

    mtu: int | None = None
    pool_routes: bool = False
    default_route: bool = True


def network_options(given: Mapping[str, str]) -> NetworkOptions:
    """The meaning of a network's `--opt` values, by their plain names."""
    return NetworkOptions(
        mtu=_mtu(given[OPTION_MTU]) if OPTION_MTU in given else None,
        pool_routes=truth(f"--opt {OPTION_POOL_ROUTES}", given.get(OPTION_POOL_ROUTES, "false")),
        default_route=truth(f"--opt {OPTION_DEFAULT_ROUTE}", given.get(OPTION_DEFAULT_ROUTE, "true")),
    )


def plain_network_options(given: Mapping[str, Any]) -> dict[str, str]:
    """`--opt` values under their plain names. Raises Unsupported for one that is not known."""
    ours = {name: value for name, value in given.items() if name not in _DOCKERS_OWN}
    return {name: str(value) for name, value in _plain(ours, "--opt", "driver calico", NETWORK_OPTIONS).items()}


def plain_ipam_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """`--ipam-opt` values under their plain names. Raises Unsupported for one that is not known."""
    return _plain(given, "--ipam-opt", "calico-ipam", IPAM_OPTIONS)


def truth(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in ("true", "false", "1", "0"):
        raise InvalidInput(name, value, "must be true or false")
    return word in ("true", "1")


def _plain(given: Mapping[str, Any], flag: str, whose: str, known: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for written, value in given.items():
        name = str(written).removeprefix(PREFIX)
        if name not in known:
            raise Unsupported(f"{flag} {written}", hint=_unknown(name, whose, known))
        if found.setdefault(name, value) != value:
            raise InvalidInput(f"{flag} {written}", value, f"{name} is given twice, with {found[name]!r} as well")
    return found


def _unknown(name: str, whose: str, known: Sequence[str]) -> str:
    """The hint of a refusal: what was probably meant, and all that there is."""
    short = {one.rpartition(".")[2]: one for one in known}
    near = difflib.get_close_matches(name.rpartition(".")[2].replace("_", "-"), short, 1)
    meant = f"did you mean {short[near[0]]}? " if near else ""
    return f"not known to {whose}; {meant}known: {', '.join(known)}"


def _mtu(value: str) -> int:
    if not value.isascii() or not value.isdigit() or not _MTU_MIN <= int(value) <= _MTU_MAX:
        raise InvalidInput(f"--opt {OPTION_MTU}", value, f"must be a number of bytes from {_MTU_MIN} to {_MTU_MAX}")
    return int(value)
