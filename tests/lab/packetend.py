"""One end of hand-made packets: puts whole IP packets on the way from where it runs, and says which arrive there.

Run by ``wire.End`` in the network namespace of a container or host. A line on its input is a JSON list of [packet in
hex, destination]; a line on its output is the mark of a packet that arrived, behind the host's packet filter. Standard
library only.
"""
from __future__ import annotations

import json
import select
import socket
import sys

IP_PROTOCOLS = (1, 4, 6, 17, 132, 136)
IP6_PROTOCOLS = (6, 17, 58)
MARK, LENGTH = b"calico", 14


def main() -> None:
    """Until the input ends."""
    senders = {family: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
               for family in (socket.AF_INET, socket.AF_INET6)}
    listeners = [socket.socket(socket.AF_INET, socket.SOCK_RAW, number) for number in IP_PROTOCOLS]
    listeners += [socket.socket(socket.AF_INET6, socket.SOCK_RAW, number) for number in IP6_PROTOCOLS]
    # Without a buffer: what lies in one is not seen by select.
    asked = open(sys.stdin.fileno(), "rb", buffering=0)
    print("ready", flush=True)
    while True:
        for ready in select.select([asked, *listeners], [], [])[0]:
            if ready is asked:
                line = asked.readline()
                if not line:
                    return
                for packet, destination in json.loads(line):
                    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
                    try:
                        senders[family].sendto(bytes.fromhex(packet), (destination, 0))
                    except PermissionError:
                        pass  # how the kernel tells a sender that an output rule dropped its packet
            else:
                data = ready.recv(4096)
                at = data.find(MARK)
                if at >= 0:
                    print(data[at:at + LENGTH].hex(), flush=True)


if __name__ == "__main__":
    main()
