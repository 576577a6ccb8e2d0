"""The suite runs each test on the real etcd and on the in-memory stand-in."""

from __future__ import annotations

from typing import Callable, Iterator

import pytest

from calico_plugin.datastore.etcd import connect
from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from tests.fakes.memory_kv import MemoryKV


@pytest.fixture(params=["etcd", "memory"])
def any_kv(request: pytest.FixtureRequest) -> Iterator[KV]:
    """An empty store, real or in memory."""
    store: KV
    if request.param == "memory":
        store = MemoryKV()
    else:
        store = connect([request.getfixturevalue("etcd")], source="the tests")
    yield store
    store.close()


@pytest.fixture
def soon() -> Callable[[], Deadline]:
    """A fresh deadline, long enough for a busy machine."""
    return lambda: Deadline(20)
