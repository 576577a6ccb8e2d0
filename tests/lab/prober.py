"""A TCP connection that is kept talking, or the echo at its other end. Run by ``connectivity.Stream``.

    python prober.py server PORT            echoes whatever comes, on every connection
    python prober.py client ADDRESS PORT    ten lines a second over ONE connection

The client prints, for each line that came back, the seconds (monotonic clock) at which it did; it ends with status
1 when the connection breaks, and never reconnects: a broken connection is what it is there to find. Standard library
only.
"""
from __future__ import annotations

import socket
import sys
import threading
import time

PAUSE = 0.1


def serve(port: int) -> None:
    """Echo on every connection."""
    with socket.create_server(("", port)) as listener:
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def talk(address: str, port: int) -> None:
    """Send a line, await its echo, say when it came."""
    with socket.create_connection((address, port), timeout=5) as connection:
        connection.settimeout(120)
        lines = connection.makefile("rb")
        number = 0
        while True:
            number += 1
            connection.sendall(b"%d\n" % number)
            if lines.readline() != b"%d\n" % number:
                sys.exit("the connection was closed")
            print(f"{time.monotonic():.3f}", flush=True)
            time.sleep(PAUSE)


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(int(sys.argv[2]))
    else:
        talk(sys.argv[2], int(sys.argv[3]))
