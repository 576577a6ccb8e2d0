"""Status in the datastore."""

from __future__ import annotations

import json

from calico_plugin.agent.status import Reporting, Status, reporting
from calico_plugin.deadline import Deadline
from calico_plugin.model import keys
from tests.fakes.memory_kv import MemoryKV

NODE = "h"
ONE = ("libnetwork", "libnetwork/libnetwork", "e1")
KEY = keys.endpoint_status(NODE, *ONE)


def value(kv: MemoryKV, key: str) -> object:
    item = kv.get(key, Deadline(1))
    return json.loads(item.value) if item else None


class TestReporting:
    def test_later_configurations_win(self) -> None:
        """The node's own over the default; what does not parse is passed over."""
        found = reporting(
            Reporting(),
            {"reportingInterval": "0s", "endpointReportingEnabled": True, "endpointReportingDelay": "nonsense"},
            {"reportingInterval": "1m30s", "reportingTTL": "5m"},
        )
        assert found == Reporting(interval=90, ttl=300, endpoints=True, delay=1.0)


class TestProcess:
    def test_first_after_ten_seconds_then_each_interval(self) -> None:
        """Live under a lease, last without; first_update once."""
        now, kv = [1000.0], MemoryKV()
        status = Status(kv, NODE, clock=lambda: now[0])
        status._step()
        assert value(kv, keys.felix_status(NODE)) is None
        now[0] += 10
        status._step()
        live, last = (kv.get(key(NODE), Deadline(1)) for key in (keys.felix_status, keys.felix_last_status))
        assert live is not None and live.lease and last is not None and not last.lease
        first = json.loads(live.value)
        assert first["first_update"] is True and first["uptime"] == 10.0 and first["time"].endswith("Z")
        now[0] += 30
        status._step()
        assert value(kv, keys.felix_status(NODE)) == {**first, "uptime": 40.0, "first_update": False}

    def test_interval_zero_writes_nothing(self) -> None:
        """As calico-node's default configuration says."""
        now, kv = [1000.0], MemoryKV()
        status = Status(kv, NODE, clock=lambda: now[0])
        status.configure(Reporting(interval=0))
        now[0] += 100
        status._step()
        assert kv.list("", Deadline(1)).items == ()


class TestEndpoints:
    def test_changes_only_and_foreign_keys_go(self) -> None:
        """What is stored is compared once; then only changes are written, and what is no endpoint goes."""
        kv = MemoryKV()
        stale = keys.endpoint_status(NODE, "k8s", "x", "y")
        kv.put(stale, b'{"status":"up"}', Deadline(1))
        status = Status(kv, NODE)
        status.configure(Reporting(interval=0, endpoints=True))
        status.endpoints({ONE: True})
        status._step()
        assert value(kv, KEY) == {"status": "up"} and value(kv, stale) is None
        revision = kv.list("", Deadline(1)).revision
        status._step()
        assert kv.list("", Deadline(1)).revision == revision
        status.endpoints({ONE: False})
        status._step()
        assert value(kv, KEY) == {"status": "down"}
        status.endpoints({})
        status._step()
        assert value(kv, KEY) is None

    def test_host_endpoints_have_their_own_keys(self) -> None:
        """As Felix writes them; an endpoint that governs no interface is in error."""
        kv = MemoryKV()
        stale, key = keys.host_endpoint_status(NODE, "gone"), keys.host_endpoint_status(NODE, "eth0")
        kv.put(stale, b'{"status":"up"}', Deadline(1))
        status = Status(kv, NODE)
        status.configure(Reporting(interval=0, endpoints=True))
        status.endpoints({ONE: True})
        status.host_endpoints({"eth0": "error"})
        status._step()
        assert value(kv, key) == {"status": "error"} and value(kv, stale) is None and value(kv, KEY) == {"status": "up"}
        status.host_endpoints({"eth0": "up"})
        status._step()
        assert value(kv, key) == {"status": "up"}

    def test_nothing_without_being_asked(self) -> None:
        """Off by default."""
        kv = MemoryKV()
        status = Status(kv, NODE)
        status.endpoints({ONE: True})
        status._step()
        assert kv.list("", Deadline(1)).items == ()
