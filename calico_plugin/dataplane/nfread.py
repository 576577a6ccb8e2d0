"""What `nft -j list table` says: counters for people, and the whole state, by which tests check `nfdump`."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any, Mapping

import msgspec

from calico_plugin.dataplane.nfsteps import Print, State
from calico_plugin.dataplane.nftscript import PORT_DATA, TYPES
from calico_plugin.model.desired import AddressSet, Hook, PortMap, SetType, VerdictMap

_TYPE_OF = {text: kind for kind, text in TYPES.items()}
_VERSION_OF = {text: version for version, text in PORT_DATA.items()}


def counted(listing: str) -> dict[str, list[int | None]]:
    """Chain -> packets counted by each of its rules, None for rules that do not count."""
    found: dict[str, list[int | None]] = {}
    for entry in msgspec.json.decode(listing)["nftables"]:
        if "rule" in entry:
            body = entry["rule"]
            numbers = (part["counter"]["packets"] for part in body["expr"] if "counter" in part)
            found.setdefault(body["chain"], []).append(next(numbers, None))
    return found


def parse(listing: str) -> State:
    """What `list table` in JSON says. An object that we could not have made gets a print that equals none of ours."""
    sets: dict[str, AddressSet] = {}
    maps: dict[str, VerdictMap] = {}
    ports: dict[str, PortMap] = {}
    comments: dict[str, list[str]] = {}
    hooks: dict[str, Hook | None] = {}
    for entry in msgspec.json.decode(listing)["nftables"]:
        for sort, body in entry.items():
            if sort == "set":
                sets[body["name"]] = _parse_set(body)
            elif sort == "map" and _words(body["map"]) in _VERSION_OF:
                ports[body["name"]] = _parse_ports(body)
            elif sort == "map":
                maps[body["name"]] = _parse_map(body)
            elif sort == "chain":
                comments[body["name"]], hooks[body["name"]] = [], _parse_hook(body)
            elif sort == "rule":
                comments[body["chain"]].append(body.get("comment", ""))
    chains = {name: Print(hooks[name], tuple(listed)) for name, listed in comments.items()}
    return State(True, sets, maps, chains, ports)


def _parse_hook(body: Mapping[str, Any]) -> Hook | None:
    return Hook(body["type"], body["hook"], body["prio"]) if "hook" in body else None


def _parse_map(body: Mapping[str, Any]) -> VerdictMap:
    elements = dict(map(_parse_element, body.get("elem", ())))
    kind = _TYPE_OF.get(_words(body["type"]), SetType.INTERFACE)
    return VerdictMap(body["name"], elements, kind, "interval" in body.get("flags", ()))


def _parse_set(body: Mapping[str, Any]) -> AddressSet:
    kind = _TYPE_OF.get(_words(body["type"]), SetType.INTERFACE)
    members = frozenset(_parse_member(item) for item in body.get("elem", ()))
    return AddressSet(body["name"], kind, members, "interval" in body.get("flags", ()))


def _parse_ports(body: Mapping[str, Any]) -> PortMap:
    kind = _TYPE_OF.get(_words(body["type"]), SetType.PORT)
    leads = {_parse_member(key): _parse_member(data) for key, data in body.get("elem", ())}
    return PortMap(body["name"], kind, _VERSION_OF[_words(body["map"])], leads)


def _words(kind: str | list[str]) -> str:
    return kind if isinstance(kind, str) else " . ".join(kind)


def _parse_member(item: Any) -> str:
    if isinstance(item, Mapping):
        if "elem" in item:
            return _parse_member(item["elem"]["val"])
        if "concat" in item:
            return " . ".join(_parse_member(part) for part in item["concat"])
        if "prefix" in item:
            return str(ip_network(f"{item['prefix']['addr']}/{item['prefix']['len']}", strict=False))
        if "range" in item:
            return "-".join(map(_parse_member, item["range"]))
        return str(item)
    text = str(item)
    # Python and the kernel's tools spell some IPv6 addresses differently.
    return str(ip_address(text)) if ":" in text and "%" not in text and _is_address(text) else text


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _parse_element(item: Any) -> tuple[str, str]:
    key, verdict = item
    if isinstance(key, Mapping) and "elem" in key:
        key = key["elem"]["val"]
    target = verdict.get("goto") if isinstance(verdict, Mapping) else None
    return _parse_range(key), target["target"] if target else str(verdict)


def _parse_range(key: Any) -> str:
    """A map's key; nft shows some ranges as prefixes."""
    text = _parse_member(key)
    if "/" not in text or "-" in text:
        return text
    net = ip_network(text)
    return f"{net.network_address}-{net.broadcast_address}"
