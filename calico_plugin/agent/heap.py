"""The memory of a process that reads a whole cluster once and then changes little of what it holds.

Python's collector of cycles looks at all objects again and again while they are made, and now and then later on: a
second of work, and pauses of tenths of one, for hundreds of thousands of objects that stay. What the reading needed
for a while goes back to the kernel.
"""

from __future__ import annotations

import ctypes
import gc


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
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
