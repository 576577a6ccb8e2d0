"""calico-node's root file system for tests, made by ``make plugin`` once and then only renewed; and images of it."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path

from tests.lab.machine import Machine

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "build" / "plugin"
IMAGE = "calico/node:latest"
# A privileged container wants every capability, and the machine that runs the lab may lack one: options of dockerd.
PRIVILEGED = (f"--add-runtime=lab={Path(__file__).with_name('runc.py')}", "--default-runtime=lab")


def built() -> Path:
    """The folder that `docker plugin create` takes, up to date with the sources."""
    PLUGIN.parent.mkdir(exist_ok=True)
    with (PLUGIN.parent / "plugin.lock").open("w") as lock:  # several test runs may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, str(ROOT / "plugin" / "build.py")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return PLUGIN


def import_image(machine: Machine, name: str = IMAGE) -> None:
    """The image as the Dockerfile makes it, from the same root file system."""
    changes = [word for line in dockerfile_changes() for word in ("--change", line)]
    tar = subprocess.Popen(["tar", "-C", str(built() / "rootfs"), "-c", "."], stdout=subprocess.PIPE)
    command = machine.command(["docker", "import", *changes, "-", name])
    subprocess.run(command, stdin=tar.stdout, check=True, stdout=subprocess.DEVNULL)
    assert tar.wait() == 0


def dockerfile_changes() -> list[str]:
    """What the Dockerfile says of an image besides its files; `docker import` of 20.10 takes no HEALTHCHECK."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    last_stage = text[text.rindex("\nFROM ") :]
    return re.findall(r"^(?:ENV|LABEL|ENTRYPOINT) .*$", last_stage, re.MULTILINE)


def healthcheck() -> list[str]:
    """The command of the Dockerfile's HEALTHCHECK."""
    found = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found
    return json.loads(found[1])
