"""A host whose address changes while calico-node runs."""

from __future__ import annotations

from calico_plugin.config import NodeSettings
from calico_plugin.errors import DatastoreUnavailable
from calico_plugin.node.interfaces import Interface
from calico_plugin.node.recheck import AddressWatch
from calico_plugin.node.startup import HostView


class World:
    """The host's address, the time, and what was written."""

    def __init__(self, ip: str = "autodetect") -> None:
        self.address, self.now, self.fail = "10.0.0.5/24", 0.0, False
        self.written: list[str] = []
        self.watch = AddressWatch(NodeSettings(ip=ip), self.look, self.write, lambda: self.now)

    def look(self) -> HostView:
        addresses = (self.address,) if self.address else ()
        return HostView((Interface(2, "eth0", True, False, addresses),), lambda destination, version: None)

    def write(self, host: HostView) -> None:
        if self.fail:
            raise DatastoreUnavailable("etcd does not answer")
        self.written.append(host.interfaces[0].addresses[0])

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.watch.tick()


def test_a_new_address_is_written_once() -> None:
    """Nothing before the interval is over, one write after a change, none without one."""
    world = World()
    world.address = "10.0.0.6/24"
    world.later(59)
    assert world.written == []
    world.later(2)
    world.later(61)
    assert world.written == ["10.0.0.6/24"]


def test_a_lost_address_is_waited_for_and_a_failed_write_repeated() -> None:
    """No address at all changes nothing; a datastore that is away is asked again at the next look."""
    world = World()
    world.address = ""
    world.later(61)
    world.address, world.fail = "10.0.0.7/24", True
    world.later(61)
    world.fail = False
    world.later(61)
    assert world.written == ["10.0.0.7/24"]


def test_only_detected_addresses_are_followed() -> None:
    """A given or stored address is never changed behind the user's back."""
    world = World(ip="")
    world.address = "10.0.0.6/24"
    world.later(1000)
    assert world.written == []
