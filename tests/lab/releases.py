"""Docker engines that lab hosts can run: the machine's own, and those of newer Debian releases in folders of their own.

A folder is made once, by debootstrap, and kept below /var/cache for all labs.
"""
from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

from tests.lab.machine import Machine, Process, marked
from tests.lab.spec import BOOKWORM, DockerRelease
from tests.lab.wait import wait_for

CACHE = Path("/var/cache/calico-lab")
PACKAGES = {
    "trixie": "docker.io,docker-cli,iproute2,iptables,ca-certificates",
    "forky": "docker.io,docker-cli,docker-compose,iproute2,iptables,ca-certificates",
}
MIRROR = "http://deb.debian.org/debian"
# A release that this machine's debootstrap may not know yet is made like sid.
SCRIPT = "/usr/share/debootstrap/scripts/sid"

TRIXIE = DockerRelease("26.1", root=CACHE / "trixie")
FORKY = DockerRelease("28.5", root=CACHE / "forky")
ENGINE = Path(__file__).with_name("engine.sh")
PLACE = "/run/engine.pid"
# The client that belongs to the daemon, in the daemon's own root.
CLIENT = """#!/bin/sh
exec nsenter -t "$(cat /run/docker.pid)" -m -- docker "$@"
"""
RELEASES = {release.label: release for release in (BOOKWORM, TRIXIE, FORKY)}


def ensure(release: DockerRelease) -> None:
    """Make the release's folder, if it needs one and there is none yet; takes about a minute."""
    if release.root is None or release.root.exists():
        return
    assert shutil.which("debootstrap"), "debootstrap is not installed: apt-get install debootstrap"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if release.root.exists():
            return
        # Made beside it, so that a broken one is never taken for a whole one.
        fresh, suite = release.root.with_suffix(".part"), release.root.name
        shutil.rmtree(fresh, ignore_errors=True)
        words = ["debootstrap", "--variant=minbase", f"--include={PACKAGES[suite]}", suite, str(fresh), MIRROR, SCRIPT]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, f"debootstrap {suite} failed:\n{done.stdout[-2000:]}"
        fresh.rename(release.root)


def command(machine: Machine, release: DockerRelease) -> list[str]:
    """What starts dockerd on a machine; also makes `docker` there the client of that release."""
    if release.root is None:
        return ["dockerd"]
    ensure(release)
    script = 'test -e /run/docker-client || { cat >/run/docker-client; chmod 755 /run/docker-client; ' \
             'mount --bind /run/docker-client /usr/bin/docker; }'
    machine.run("/bin/sh", "-c", script, stdin=CLIENT.encode())

    def there() -> bool:
        return machine.run("test", "-e", PLACE, check=False).returncode == 0

    if not there():
        machine.spawn("engine.log", "unshare", "--mount", "--propagation", "private", "/bin/sh", str(ENGINE),
                      str(release.root))
        wait_for("the engine's place", there, 20)
    return ["/bin/sh", "-c", f'exec nsenter -t "$(cat {PLACE})" -m -- dockerd "$@"', "dockerd"]


def process(machine: Machine, release: DockerRelease) -> Process | None:
    """The running dockerd of a release with a root of its own; its mounts are not the machine's."""
    if release.root is None:
        return None
    found = [one for one in marked(f"{machine.lab}/{machine.name}\0") if one.argv[0] == "dockerd"]
    assert len(found) == 1, f"{machine.name} runs {len(found)} of dockerd"
    return found[0]
