"""``make up`` and ``make down``: calico-node on this machine, for its own Docker, with an etcd of its own.

Runs what a user would type (``calicoctl node run``) and says what to type next. ETCD_ENDPOINTS, NODENAME, IP and the
other settings of calico-node are taken from the environment, as always.
"""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CALICOCTL = str(Path(sys.executable).with_name("calicoctl"))
NEXT = f"""
Type next:
  docker network create --driver calico --ipam-driver calico-ipam cal_net1
  docker run --rm -it --net cal_net1 busybox

To look, and to stop:
  sudo {CALICOCTL} node status
  sudo make down"""


def docker_runs() -> bool:
    """Whether a Docker engine answers on this machine."""
    try:
        asked = subprocess.run(["docker", "version"], capture_output=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def calicoctl(*words: str) -> int:
    """Run a calicoctl command in the open; its exit status."""
    print(f"# calicoctl {' '.join(words)}", flush=True)
    return subprocess.run([CALICOCTL, *words], check=False).returncode


def up() -> int:
    """Start, then say what to do next."""
    status = calicoctl("node", "run")
    if status != 0:
        return status
    if not docker_runs():
        print("\nNo Docker engine answers on this machine (`docker version` fails). calico-node waits for it; start "
              "Docker first (`sudo systemctl start docker`, or `sudo dockerd`).")
    print(NEXT)
    return 0


def down() -> int:
    """Stop, and leave nothing on this machine."""
    return calicoctl("node", "reset")


if __name__ == "__main__":
    sys.exit(down() if "--down" in sys.argv[1:] else up())
