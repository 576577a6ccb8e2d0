"""One byte there, one byte back, over one TCP connection, as fast as it goes. Standard library only."""
from __future__ import annotations

import socket
import sys
import time

PORT = 7009


def server() -> None:
    """Answer one client to its end."""
    with socket.create_server(("", PORT)) as listener:
        print("ready", flush=True)
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(1):
            connection.send(data)


def client(address: str, seconds: float) -> None:
    """Ask for some seconds; print answers per second."""
    with socket.create_connection((address, PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began, count = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            connection.send(b"x")
            connection.recv(1)
            count += 1
    print(count / passed)


if __name__ == "__main__":
    if sys.argv[1] == "server":
        server()
    else:
        client(sys.argv[2], float(sys.argv[3]))
