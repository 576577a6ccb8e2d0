"""Process 1 of a lab machine: gives the machine a file system of its own where that matters, then reaps children.

Started by ``machine.boot`` in fresh mount, UTS, IPC, network and (mostly) PID namespaces, as
``python hostinit.py NAME``, with a JSON object on standard input: ``name``, ``cow`` (an empty folder), ``binds``
([source, target] pairs), ``files`` ({path: text}), ``systemd`` (null, or a control group of the machine's own: then
process 1 becomes systemd). Says ``ready`` on standard output when the machine can be entered.

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
CLONE_NEWCGROUP = 0x02000000
COPIED_ON_WRITE = ("/etc", "/var/lib", "/var/log")
CGROUPS = Path("/sys/fs/cgroup")
# What systemd would start of itself: all but these would touch the kernel and the devices of the real machine.
STARTED_BY_ITSELF = ("sysinit.target.wants", "multi-user.target.wants", "timers.target.wants")
HARMLESS = ("systemd-journald.service", "systemd-journal-flush.service", "dbus.service")
UNWANTED = ("systemd-remount-fs.service", "systemd-udevd.service", "systemd-udev-trigger.service", "getty.target",
            "console-getty.service")
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


def own_control_group(name: str) -> None:
    """Enter a control group of that name in every hierarchy; from here on it looks like the root of all.

    systemd takes the whole tree that it sees for its own.
    """
    for tree in sorted(CGROUPS.iterdir()):
        path = tree
        for part in Path(name.strip("/")).parts:
            path = path / part
            path.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems") if tree.name == "cpuset" else ():
                (path / setting).write_text((tree / setting).read_text())
        (path / "cgroup.procs").write_text("0")
    if _libc.unshare(CLONE_NEWCGROUP) != 0:
        raise OSError(ctypes.get_errno(), "unshare of control groups")


def mount_own_control_groups() -> None:
    """The same hierarchies as seen from inside, below a folder that systemd may change: it adds to it, and locks it.

    Without version 2, about which Docker 20.10 and systemd differ.
    """
    trees = sorted(tree.name for tree in CGROUPS.iterdir() if tree.name != "unified")
    mount("tmpfs", str(CGROUPS), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755")
    for tree in trees:
        (CGROUPS / tree).mkdir()
        mount("cgroup", str(CGROUPS / tree), "cgroup", 0, "none,name=systemd" if tree == "systemd" else tree)


def mask_units() -> None:
    """Leave to systemd only what a lab enables."""
    library = Path("/lib/systemd/system")
    found = {entry.name for folder in STARTED_BY_ITSELF if (library / folder).is_dir()
             for entry in (library / folder).iterdir()}
    for name in {*found, *UNWANTED} - set(HARMLESS):
        unit = Path("/etc/systemd/system", name)
        unit.unlink(missing_ok=True)
        unit.symlink_to("/dev/null")


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
    spec = json.load(sys.stdin)
    if spec["systemd"]:
        become_systemd(spec)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    build(spec)
    say_ready()
    reap_for_ever()


def become_systemd(spec: dict) -> None:
    """The machine boots as a real one does: process 1 starts what is enabled."""
    own_control_group(spec["systemd"])
    build(spec)
    mount_own_control_groups()
    mask_units()
    say_ready()
    kept = {name: value for name, value in os.environ.items() if name.startswith("CALICO_LAB")}
    os.execve("/lib/systemd/systemd", ["systemd", "--unit=multi-user.target"],
              {**kept, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "container": "lab"})


def say_ready() -> None:
    """The last words."""
    print("ready", flush=True)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


if __name__ == "__main__":
    main()
