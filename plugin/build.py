"""Makes the managed plugin, ``build/plugin/{config.json,rootfs}``, without Docker: debootstrap, then plugin/install.sh.

    sudo python3 plugin/build.py [--output build/plugin] [--base build/base]

The base (a minimal Debian 12) is kept for the next time. Standard library only; needs root and debootstrap. Packages
come from where this machine's apt and pip get theirs: its certificates and proxy settings are used and left out of the
result. ``docker plugin create NAME build/plugin`` takes the folder as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SUITE = "bookworm"
SOURCES = ("setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "plugin", "calico_plugin")
# What this machine has for reaching the packages, wanted inside while building.
BORROWED = ("/etc/resolv.conf", "/etc/hosts", "/usr/local/share/ca-certificates")
INSTALL = (
    "mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && "
    "exec chroot {root} /bin/sh /src/plugin/install.sh"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    build = ROOT / "build"
    parser.add_argument("--output", type=Path, default=build / "plugin", help="what `docker plugin create` takes")
    parser.add_argument("--base", type=Path, default=build / "base", help="a minimal Debian, made when absent")
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("making a root file system needs root: sudo make plugin", file=sys.stderr)
        return 1
    rootfs, key = given.output / "rootfs", given.output / "rootfs.key"
    if rootfs.exists() and key.exists() and key.read_text() == fingerprint():
        refresh(rootfs)
    else:
        make_base(given.base)
        make_rootfs(given.base, rootfs)
        key.write_text(fingerprint())
    shutil.copy(HERE / "config.json", given.output / "config.json")
    print(f"{given.output}: {size(given.output / 'rootfs') >> 20} MiB. Next: docker plugin create NAME {given.output}")
    return 0


def make_base(base: Path) -> None:
    """debootstrap into a neighbour first, so that a broken one is never taken for a whole one."""
    if base.exists():
        return
    if shutil.which("debootstrap") is None:
        raise SystemExit("debootstrap is not installed: apt-get install debootstrap")
    fresh = base.with_name(base.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    print(f"Making a minimal Debian {SUITE} in {base}", flush=True)
    quiet = subprocess.run(["debootstrap", "--variant=minbase", SUITE, str(fresh)], stdout=subprocess.PIPE, text=True)
    if quiet.returncode != 0:
        raise SystemExit(f"{quiet.stdout}debootstrap failed (status {quiet.returncode})")
    fresh.rename(base)


def make_rootfs(base: Path, rootfs: Path) -> None:
    """Copy the base and run the script in the copy; the old result stays until the new one is whole."""
    fresh = rootfs.with_name("rootfs.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{base}/.", str(fresh)], check=True)
    copy_sources(fresh / "src")
    borrow(fresh)
    print(f"Installing packages into {rootfs}", flush=True)
    # Mounts end with the namespace; with the PID namespace, so does whatever a package may have started.
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INSTALL.format(root=fresh)]
    log = fresh.with_name("install.log")
    with log.open("wb") as output:
        done = subprocess.run(command, env=environment(), stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"{tail(log)}\nplugin/install.sh failed (status {done.returncode}); all of it is in {log}")
    give_back(fresh)
    shutil.rmtree(rootfs, ignore_errors=True)
    fresh.rename(rootfs)


def fingerprint() -> str:
    """Of all that decides on the rootfs but our own package's modules."""
    names = ("setup.cfg", "constraints.txt", "plugin/packages.txt", "plugin/install.sh")
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in names)).hexdigest()


def refresh(rootfs: Path) -> None:
    """Only our own modules anew: the rest is as it would be built."""
    print(f"Renewing calico_plugin in {rootfs}; everything else there is up to date", flush=True)
    (package,) = rootfs.glob("opt/calico/lib/python3*/site-packages/calico_plugin")
    shutil.rmtree(package)
    shutil.copytree(ROOT / "calico_plugin", package, ignore=shutil.ignore_patterns("__pycache__"))
    inside = f"/{package.relative_to(rootfs)}"
    subprocess.run(["chroot", str(rootfs), "/opt/calico/bin/python", "-m", "compileall", "-q", inside], check=True)


def copy_sources(target: Path) -> None:
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, target / name)


def borrow(root: Path) -> None:
    for name in BORROWED:
        source, target = Path(name), root / name.lstrip("/")
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            target.unlink(missing_ok=True)
            shutil.copy(source, target)


def give_back(root: Path) -> None:
    """Nothing of this machine may be in what others install."""
    for name in ("src", *BORROWED):
        path = root / name.lstrip("/")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """Settings of pip and of proxies, and nothing else of the caller's."""
    kept = [name for name in os.environ if name.startswith("PIP_") or name.endswith(("_proxy", "_PROXY"))]
    given = {name: os.environ[name] for name in kept}
    return {**given, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-25:])


def size(folder: Path) -> int:
    """Bytes of all files, hard links once."""
    seen = {}
    for place, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(place, name))
            seen[status.st_ino] = status.st_size
    return sum(seen.values())


if __name__ == "__main__":
    sys.exit(main())
