"""NetworkDriver calls: parse, ask, answer (docker-plugin 2.1)."""

from __future__ import annotations

from typing import Any, Callable

import msgspec
from flask import Blueprint

from calico_plugin.deadline import Deadline
from calico_plugin.driver import wire
from calico_plugin.driver.app import Method, blueprint
from calico_plugin.driver.endpoints import DATASTORE_SECONDS, Endpoints, Joined
from calico_plugin.driver.networks import Networks
from calico_plugin.driver.publishing import Publishing

_CONNECTED, _NEXT_HOP = 1, 0


def network_driver(
    networks: Networks,
    endpoints: Endpoints,
    publishing: Publishing,
    scope: Callable[[], str],
    after_network: Callable[..., None],
) -> Blueprint:
    """`scope` answers for the caller at the other end of the present connection; `after_network` is told of a new
    network's call.
    """

    def capabilities(body: bytes, deadline: Deadline) -> bytes:
        # Global connectivity: containers of all hosts reach each other, so a swarm spreads their names too.
        return wire.answer(Scope=scope(), ConnectivityScope="global")

    def create_network(body: bytes, deadline: Deadline) -> bytes:
        call, within = wire.create_network(body), deadline.sooner(DATASTORE_SECONDS)
        networks.create(call, within)
        after_network(call, within)
        return wire.EMPTY

    def delete_network(body: bytes, deadline: Deadline) -> bytes:
        networks.delete(wire.network_id(body), deadline.sooner(DATASTORE_SECONDS))
        return wire.EMPTY

    def create_endpoint(body: bytes, deadline: Deadline) -> bytes:
        call = wire.create_endpoint(body)
        mac = endpoints.create(call, deadline)
        # Docker refuses an answer that repeats what it gave.
        return wire.answer(Interface={} if call.mac else {"MacAddress": mac})

    def delete_endpoint(body: bytes, deadline: Deadline) -> bytes:
        endpoints.delete(wire.endpoint_call(body).endpoint, deadline)
        return wire.EMPTY

    def join(body: bytes, deadline: Deadline) -> bytes:
        return join_answer(endpoints.join(wire.endpoint_call(body), deadline))

    def leave(body: bytes, deadline: Deadline) -> bytes:
        call = wire.endpoint_call(body)
        endpoints.leave(call)
        publishing.left(call.endpoint, deadline)
        return wire.EMPTY

    def information(body: bytes, deadline: Deadline) -> bytes:
        wire.endpoint_call(body)
        return b'{"Value":{}}'

    def publish(body: bytes, deadline: Deadline) -> bytes:
        publishing.publish(wire.connectivity(body), deadline)
        return wire.EMPTY

    def withdraw(body: bytes, deadline: Deadline) -> bytes:
        publishing.withdraw(wire.endpoint_call(body).endpoint, deadline)
        return wire.EMPTY

    def nothing(body: bytes, deadline: Deadline) -> bytes:
        return wire.EMPTY

    return blueprint(
        "network-driver",
        (
            Method("NetworkDriver.GetCapabilities", capabilities),
            Method("NetworkDriver.AllocateNetwork", _allocate),
            Method("NetworkDriver.FreeNetwork", _free),
            Method("NetworkDriver.CreateNetwork", create_network),
            Method("NetworkDriver.DeleteNetwork", delete_network),
            Method("NetworkDriver.CreateEndpoint", create_endpoint),
            Method("NetworkDriver.DeleteEndpoint", delete_endpoint),
            Method("NetworkDriver.EndpointOperInfo", information),
            Method("NetworkDriver.Join", join),
            Method("NetworkDriver.Leave", leave),
            Method("NetworkDriver.ProgramExternalConnectivity", publish),
            Method("NetworkDriver.RevokeExternalConnectivity", withdraw),
            Method("NetworkDriver.DiscoverNew", nothing),
            Method("NetworkDriver.DiscoverDelete", nothing),
        ),
    )


def join_answer(joined: Joined) -> bytes:
    routes: list[dict[str, Any]] = [
        {"Destination": destination, "RouteType": _CONNECTED, "NextHop": ""} for destination in joined.connected
    ]
    routes += [{"Destination": cidr, "RouteType": _NEXT_HOP, "NextHop": hop} for cidr, hop in joined.routed]
    return msgspec.json.encode(
        {
            "InterfaceName": {"SrcName": joined.interface, "DstPrefix": joined.prefix},
            "Gateway": str(joined.gateway4 or ""),
            "GatewayIPv6": str(joined.gateway6 or ""),
            "StaticRoutes": routes,
            "DisableGatewayService": False,
        }
    )


def _allocate(body: bytes, deadline: Deadline) -> bytes:
    """Swarm managers only; what is answered here is all that the nodes' CreateNetwork gets."""
    return wire.answer(Options=wire.allocate_network(body))


def _free(body: bytes, deadline: Deadline) -> bytes:
    wire.network_id(body)
    return wire.EMPTY
