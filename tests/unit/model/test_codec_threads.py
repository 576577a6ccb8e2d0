"""Decoding in several threads at once, in processes of their own: a mistake would end the process."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys, threading
from typing import Any
import msgspec
from calico_plugin.model import codec
sys.setswitchinterval(1e-6)
for number in range(300):
    inner = msgspec.defstruct("Inner", [("a", str, ""), ("b", dict[str, Any], {}), ("c", tuple[str, ...], ())])
    middle = msgspec.defstruct("Middle", [("x", inner | None, None), ("y", tuple[inner, ...], ())])
    outer = [msgspec.defstruct(f"Outer{n}", [("m", middle | None, None), ("s", inner | None, None)]) for n in range(2)]
    barrier = threading.Barrier(4)
    def work(kind):
        barrier.wait()
        codec.decode(kind, "key", b'{"m": {"x": {"a": "q"}, "y": [{"a": "1"}]}, "s": {"c": ["u"]}}')
    threads = [threading.Thread(target=work, args=(outer[n % 2],)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
"""


def test_types_that_several_threads_meet_first() -> None:
    """msgspec looks at a type when it meets it first, and must not be made to in two threads at once."""
    assert subprocess.run([sys.executable, "-c", _PROGRAM], timeout=120).returncode == 0
