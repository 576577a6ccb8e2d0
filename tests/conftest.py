"""Fixtures that all tests share. The etcd fixtures start a real etcd on a free port of loopback, once per run."""

from __future__ import annotations

import os
from typing import Iterator

import pytest
import structlog

from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.deadline import Deadline
from tests.etcd_server import etcd_cluster

# Whatever a developer's shell has set must not change what a test sees.
_PREFIXES = ("ETCD_", "CALICO_", "FELIX_", "DATASTORE_", "DOCKER_", "IP_", "IP6_", "BGP_", "NO_DEFAULT_POOLS")
_NAMES = ("NODENAME", "HOSTNAME", "IP", "IP6", "AS")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several workers share the tests, those that stand on the same hosts stay with one of them."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_party(item)))


def _party(item: pytest.Item) -> str:
    """The lab that a test uses, else its file. The folder of acceptance tests has labs of its own."""
    labs = [name for name in ("store_lab", "pair") if name in getattr(item, "fixturenames", ())]
    file = item.nodeid.partition("::")[0]
    return labs[0] if labs else "acceptance" if "/acceptance/" in file else file


@pytest.fixture(autouse=True)
def _log_as_at_start() -> None:
    """What a test before this one made of the log is gone: its stream may be closed, its level may be none."""
    structlog.reset_defaults()


@pytest.fixture
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any of our settings."""
    for name in list(os.environ):
        if name in _NAMES or name.startswith(_PREFIXES):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture(scope="session")
def etcd_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The client URL of one real etcd that lives as long as the test run."""
    with etcd_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster.endpoints[0]


@pytest.fixture(scope="session")
def _session_kv(etcd_endpoint: str) -> Iterator[EtcdKV]:
    client = connect([etcd_endpoint], source="the tests")
    yield client
    client.close()


@pytest.fixture
def etcd(etcd_endpoint: str, _session_kv: EtcdKV) -> str:
    """The client URL of a real etcd that holds no key."""
    _session_kv.delete_prefix("", Deadline(10))
    return etcd_endpoint


@pytest.fixture
def kv(etcd: str) -> Iterator[EtcdKV]:
    """A client of one's own on an emptied real etcd."""
    client = connect([etcd], source="the tests")
    yield client
    client.close()
