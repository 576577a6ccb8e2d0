"""Where labs live on disk. The place is part of every mark: labs of another place are not ours to end."""
from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(os.environ.get("CALICO_LAB_DIR", "/var/tmp/calico-lab"))


def realm() -> str:
    """The folder of all labs as the kernel knows it: a chroot or container may have another one of the same path."""
    ROOT.mkdir(parents=True, exist_ok=True)
    found = ROOT.stat()
    return f"{found.st_dev:x}-{found.st_ino:x}"
