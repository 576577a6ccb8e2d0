"""Process 1 of a lab machine: gives the machine a file system of its own where that matters, then reaps children.

Started by ``machine.boot`` in fresh mount, UTS, IPC, network and (mostly) PID namespaces, as
``python hostinit.py NAME``, with a JSON object on standard input: ``name``, ``cow`` (an empty folder), ``binds``
([source, target] pairs), ``files`` ({path: text}). Says ``ready`` on standard output when the machine can be entered.

``/etc``, ``/var/lib`` and ``/var/log`` become copies on write, ``/run`` and ``/sys`` are fresh: whatever runs here
believes that it owns the machine, and nothing is left on the real one. As all mounts are private to the namespace, they
end with the last process in it; a crashed lab leaves no mount behind. Standard library only: it runs before anything
else can be trusted.
"""
from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 8192, 16384, 1 << 18
COPIED_ON_WRITE = ("/etc", "/var/lib", "/var/log")
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str = "") -> None:
    """mount(2); raises OSError that names the target."""
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None, flags, options.encode() or None)
    if _libc.mount(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {kind or 'bind'} {source}: {os.strerror(code)}", target)


def fresh_sys(spare: str) -> None:
    """A sysfs that shows this network namespace's links, with the machine's cgroups still below it.

    dockerd refuses to start without cgroups ('Devices cgroup isn't mounted'), and a new sysfs has none below it.
    """
    os.makedirs(spare, exist_ok=True)
    if not cgroups_are_mounted():
        mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount_cgroups()
        return
    mount("/sys/fs/cgroup", spare, None, MS_BIND | MS_REC)
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount(spare, "/sys/fs/cgroup", None, MS_MOVE)


def cgroups_are_mounted() -> bool:
    """Whether anything (systemd, an init script) has mounted control groups where all expect them."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1].startswith("/sys/fs/cgroup") for line in mounts)


def mount_cgroups() -> None:
    """Every controller of version 1 that the kernel has, as the package cgroupfs-mount would."""
    mount("tmpfs", "/sys/fs/cgroup", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755")
    for line in Path("/proc/cgroups").read_text().splitlines():
        controller, _, _, enabled = line.split()
        if not line.startswith("#") and enabled == "1":
            place = f"/sys/fs/cgroup/{controller}"
            os.mkdir(place)
            try:
                mount("cgroup", place, "cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, controller)
            except OSError:  # in use by version 2, or not built in
                os.rmdir(place)


def copy_on_write(path: str, store: Path) -> None:
    """Lay a private writable layer over a folder."""
    layer = store / path.strip("/").replace("/", "-")
    for part in ("upper", "work"):
        (layer / part).mkdir(parents=True)
    mount("overlay", path, "overlay", 0, f"lowerdir={path},upperdir={layer}/upper,workdir={layer}/work")


def build(spec: dict) -> None:
    """Make all private mounts and files of the machine."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    socket.sethostname(spec["name"])
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # An upper layer may not lie on another overlay (a CI job's root often is one), so it lies on a tmpfs.
    cow = Path(spec["cow"])
    mount("tmpfs", str(cow), "tmpfs", 0, "mode=755,size=512m")
    fresh_sys(str(cow / "cgroup"))
    for path in COPIED_ON_WRITE:
        copy_on_write(path, cow)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=256m")
    os.makedirs("/run/lock", exist_ok=True)
    for source, target in spec["binds"]:
        os.makedirs(target, exist_ok=True)
        mount(source, target, None, MS_BIND)
    for name, text in spec["files"].items():
        place = Path(name)
        place.unlink(missing_ok=True)  # /etc/resolv.conf may be a link out of /etc
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def reap_for_ever() -> None:
    """What a process 1 owes the orphans; SIGTERM switches the machine off."""
    wanted = {signal.SIGCHLD, signal.SIGTERM}
    while signal.sigwait(wanted) != signal.SIGTERM:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def main() -> None:
    """Build the machine, say so, and stay."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    build(json.load(sys.stdin))
    print("ready", flush=True)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    reap_for_ever()


if __name__ == "__main__":
    main()
