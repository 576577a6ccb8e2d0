"""Hand-made packets between containers, hosts and the network outside; and a calicoctl that is kept running."""
from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable, Iterable, Mapping

from tests.kernel.packets import Packet, frame
from tests.lab.machine import Machine
from tests.lab.wait import wait_for

HERE = Path(__file__).parent
_ETHERNET = 14
_MARK = b"calico"
# For what must not arrive: counted from when all has arrived that must.
_GRACE = 0.25


class End:
    """A place from which packets are sent, and where they arrive. ``command`` puts an argument list into it."""

    def __init__(self, command: Callable[..., list[str]]) -> None:
        self.seen: set[bytes] = set()
        words = command("/usr/bin/python3", "-I", str(HERE / "packetend.py"))
        self._process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *words], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the packet end did not start"
        threading.Thread(target=self._read, daemon=True).start()

    @classmethod
    def on(cls, machine: Machine) -> End:
        """In the machine's own network namespace."""
        return cls(lambda *words: machine.command(words))

    def send(self, packets: Iterable[tuple[Packet, bytes]]) -> None:
        assert self._process.stdin is not None
        listed = [(frame(packet, mark)[_ETHERNET:].hex(), packet.destination) for packet, mark in packets]
        self._process.stdin.write(json.dumps(listed) + "\n")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(5)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.seen.add(bytes.fromhex(line))


class Wire:
    """Sends packets by the names of their ends, and says which arrived."""

    def __init__(self, ends: Mapping[str, End]) -> None:
        self.ends = dict(ends)
        self._sent = 0

    def arrive(self, packets: Iterable[tuple[Packet, str, str]], expected: Iterable[bool]) -> list[bool]:
        """(packet, source end, target end) -> whether it came out at the target. What is expected to come is waited
        for; what is not gets a moment longer.
        """
        sent = []
        for packet, source, target in packets:
            self._sent += 1
            mark = _MARK + struct.pack("!Q", self._sent)
            self.ends[source].send([(packet, mark)])
            sent.append((self.ends[target], mark))
        wanted = [one for one, hoped in zip(sent, expected) if hoped]
        try:
            wait_for("packets", lambda: all(mark in end.seen for end, mark in wanted), 3, 0.01)
        except AssertionError:
            pass  # the caller says which
        threading.Event().wait(_GRACE)
        return [mark in end.seen for end, mark in sent]

    def close(self) -> None:
        for end in self.ends.values():
            end.close()


class Calicoctl:
    """Commands on a host, one after the other."""

    def __init__(self, machine: Machine, environment: Mapping[str, str]) -> None:
        root = str(HERE.parents[1])
        self._process = machine.popen(sys.executable, "-m", "tests.lab.ctl", env={**environment, "PYTHONPATH": root},
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=root)

    def __call__(self, *words: str, stdin: str = "", check: bool = True) -> str:
        """What it printed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"words": words, "stdin": stdin}) + "\n")
        answer = json.loads(self._process.stdout.readline())
        assert not check or answer["status"] == 0, f"calicoctl {words}: {answer['text']}\n{stdin}"
        return str(answer["text"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(5)
