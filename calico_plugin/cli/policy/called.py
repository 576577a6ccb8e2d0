"""What containers of all hosts are called: the agents tell each other for their DNS (docs/names.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable

from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CorruptValue
from calico_plugin.model import codec, keys
from calico_plugin.model.docker import EndpointNames


@dataclass(frozen=True, slots=True)
class Called:
    """An endpoint by its id, and its container's names on that network: its own first, then aliases."""

    endpoint: str
    network: str
    names: tuple[str, ...]


Elsewhere = Callable[[], Iterable[Called]]
"""Asks etcd. There are none where Docker's cluster store carries names itself."""


def nothing() -> Iterable[Called]:
    return ()


def read(kv: KV, deadline: Deadline) -> tuple[Called, ...]:
    """Raises DatastoreError, DeadlineExceeded."""
    found = []
    for item in kv.list(keys.ENDPOINT_NAMES, deadline).items:
        parsed = keys.parse_endpoint_names(item.key)
        try:
            told = codec.decode(EndpointNames, item.key, item.value)
        except CorruptValue:
            continue
        if parsed is not None and told.names:
            found.append(Called(parsed[1], told.network, told.names))
    return tuple(found)
