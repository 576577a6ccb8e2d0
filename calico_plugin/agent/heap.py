"""The memory of a process that reads a whole cluster once and then changes little of what it holds.

Python's collector of cycles looks at all objects again and again while they are made, and now and then later on: a
second of work, and pauses of tenths of one, for hundreds of thousands of objects that stay. What the reading needed
for a while goes back to the kernel.
"""

from __future__ import annotations

import ctypes
import gc

_LIBC = ctypes.CDLL(None)
# malloc.h
_M_ARENA_MAX = -8


def share() -> None:
    """One heap for all threads, of those that come: glibc would give each its own, with holes of its own."""
    _glibc("mallopt", _M_ARENA_MAX, 1)


def fill() -> None:
    """From here on much is made that stays: until `filled` nothing is looked at."""
    gc.disable()


def fills() -> bool:
    """Whether that goes on."""
    return not gc.isenabled()


def filled() -> None:
    """What there is now stays, and is never looked at again."""
    gc.freeze()
    gc.enable()
    _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    """A function that other C libraries do not have."""
    function = getattr(_LIBC, name, None)
    if function is not None:
        function(*arguments)
