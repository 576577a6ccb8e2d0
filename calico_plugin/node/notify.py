"""Tells systemd that calico-node is up: what is ordered after a unit of `Type=notify` starts then (sd_notify(3))."""

from __future__ import annotations

import socket

VARIABLE = "NOTIFY_SOCKET"


def ready(address: str) -> None:
    """`address` is what the variable says, "" when systemd does not ask; one that has gone is no error of ours."""
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        try:
            door.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            return
