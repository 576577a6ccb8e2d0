"""Kernel settings below /proc/sys, read before they are written: a setting that is right is left alone.

In a managed Docker plugin /proc/sys is read-only although the network namespace is the host's; a bind mount of the
host's /proc at /host/proc, where there is one, is tried then. `net.*` files follow the network namespace of the
process that opens them.
"""

from __future__ import annotations

import errno
from pathlib import Path

from calico_plugin.errors import DataplaneError

ROOTS = (Path("/proc/sys"), Path("/host/proc/sys"))


def read(name: str, roots: tuple[Path, ...] = ROOTS) -> str | None:
    """Value of a setting such as ``net/ipv4/ip_forward``; None when the kernel does not have it (any more)."""
    try:
        return (roots[0] / name).read_text().strip()
    except OSError:
        return None


def ensure(name: str, value: str, roots: tuple[Path, ...] = ROOTS) -> bool:
    """Give a setting a value; whether it had to be written. A setting that does not exist (its link is gone) is no
    error.

    Raises DataplaneError (EROFS) when it is wrong and cannot be written.
    """
    if read(name, roots) in (value, None):
        return False
    dotted = name.replace("/", ".")
    for root in roots:
        try:
            (root / name).write_text(value)
            return True
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise DataplaneError(f"sysctl {dotted}={value}: {error.strerror}", error.errno or 0) from error
    if read(name, roots) is None:
        return False
    hint = f"run `sysctl -w {dotted}={value}` on the host"
    raise DataplaneError(f"sysctl {dotted} is not {value} and /proc/sys is read-only; {hint}", errno.EROFS)
