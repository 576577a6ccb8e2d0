"""IpamDriver calls and the handshake of both sockets: parse, ask, answer (docker-plugin 2.2, 1.3)."""

from __future__ import annotations

from flask import Blueprint

from calico_plugin.deadline import Deadline
from calico_plugin.driver import wire
from calico_plugin.driver.addresses import Addresses
from calico_plugin.driver.app import Method, blueprint
from calico_plugin.driver.pools import GLOBAL_SPACE, LOCAL_SPACE

_IMPLEMENTS = wire.answer(Implements=["NetworkDriver", "IpamDriver"])
# No replay: all state is in etcd. No MAC: addresses do not depend on it.
_CAPABILITIES = wire.answer(RequiresMACAddress=False, RequiresRequestReplay=False)
_SPACES = wire.answer(LocalDefaultAddressSpace=LOCAL_SPACE, GlobalDefaultAddressSpace=GLOBAL_SPACE)


def handshake() -> Blueprint:
    """Answered from memory, so that Docker starts while etcd is away."""
    return blueprint("handshake", (Method("Plugin.Activate", lambda body, deadline: _IMPLEMENTS),))


def ipam_driver(addresses: Addresses) -> Blueprint:
    def request_pool(body: bytes, deadline: Deadline) -> bytes:
        granted = addresses.request_pool(wire.request_pool(body), deadline)
        return wire.answer(PoolID=granted.id, Pool=granted.pool, Data={wire.GATEWAY_DATA: granted.gateway})

    def release_pool(body: bytes, deadline: Deadline) -> bytes:
        # A pool is not ours to give up, and others use it too; addresses that Docker forgot in it are found by the
        # janitor.
        wire.pool_id(body)
        return wire.EMPTY

    def request_address(body: bytes, deadline: Deadline) -> bytes:
        return wire.answer(Address=addresses.request(wire.request_address(body), deadline), Data={})

    def release_address(body: bytes, deadline: Deadline) -> bytes:
        addresses.release(wire.release_address(body), deadline)
        return wire.EMPTY

    return blueprint(
        "ipam-driver",
        (
            Method("IpamDriver.GetCapabilities", lambda body, deadline: _CAPABILITIES),
            Method("IpamDriver.GetDefaultAddressSpaces", lambda body, deadline: _SPACES),
            Method("IpamDriver.RequestPool", request_pool),
            Method("IpamDriver.ReleasePool", release_pool),
            Method("IpamDriver.RequestAddress", request_address),
            Method("IpamDriver.ReleaseAddress", release_address),
        ),
    )
