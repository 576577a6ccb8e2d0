#!/usr/bin/python3
"""runc for a machine that lacks a capability itself: `docker run --privileged` asks for all there are, and fails there.

Takes out of a container's specification what this process may not give, then becomes runc. Where nothing is lacking,
nothing is changed. Used as dockerd's default runtime by labs that need privileged containers. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# linux/capability.h, by number.
NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()


def lacking() -> set[str]:
    """Names of capabilities that are not in our bounding set."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd:"))
    bounding = int(line.split()[1], 16)
    return {f"CAP_{name}" for number, name in enumerate(NAMES) if not bounding >> number & 1}


def restrict(path: Path) -> None:
    """Take what is lacking out of a container's specification, or out of that of a process for `exec`."""
    spec = json.loads(path.read_text())
    missing = lacking()
    for names in (spec.get("process", spec).get("capabilities") or {}).values():
        names[:] = [name for name in names if name not in missing]
    path.write_text(json.dumps(spec))


def main() -> None:
    """Called as runc is; only `create` and `run` have a bundle, only `exec` has a process."""
    words = sys.argv[1:]
    if "--bundle" in words:
        restrict(Path(words[words.index("--bundle") + 1]) / "config.json")
    if "--process" in words:
        restrict(Path(words[words.index("--process") + 1]))
    os.execvp("runc", ["runc", *words])


if __name__ == "__main__":
    main()
