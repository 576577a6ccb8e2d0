"""The Dockerfile, built by a Docker 20.10 of this test's own on a Debian base made by debootstrap; packages come from
where this machine's apt and pip get theirs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.lab import rootfs
from tests.lab.wait import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
CERTIFICATES = Path("/usr/local/share/ca-certificates")


class Engine:
    """dockerd in this machine's network, which it leaves alone, with its files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.host = f"unix://{folder}/docker.sock"
        # A PID namespace of its own: with its first process everything below ends.
        options = ["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", f"-H={self.host}",
                   f"--data-root={folder}/data", "--exec-root=/run/docker", "--pidfile=/run/docker.pid"]
        inside = 'mount -t tmpfs none /run && exec dockerd "$@"'
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside, "sh"]
        with (folder / "dockerd.log").open("wb") as log:
            self.process = subprocess.Popen([*command, *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_for("dockerd", lambda: self.run("version", check=False).returncode == 0, 60, 0.5)

    def run(self, *words: str, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
        """The Docker client of the daemon's own release."""
        environment = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "0"}
        done = subprocess.run(["/usr/bin/docker", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=environment, check=False, **options)
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done

    def close(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def engine(tmp_path):
    """Running."""
    if os.geteuid() != 0:
        pytest.skip("needs root: sudo make lab")
    one = Engine(tmp_path)
    yield one
    one.close()


def import_base(engine: Engine, folder: Path) -> None:
    """A minimal Debian with this machine's certificate authorities."""
    rootfs.built()
    base = folder / "base"
    subprocess.run(["cp", "-a", str(rootfs.ROOT / "build" / "base"), str(base)], check=True)
    if CERTIFICATES.is_dir():
        shutil.copytree(CERTIFICATES, base / CERTIFICATES.relative_to("/"), dirs_exist_ok=True)
    with subprocess.Popen(["tar", "-C", str(base), "-c", "."], stdout=subprocess.PIPE) as tar:
        engine.run("import", "-", "debian-base", stdin=tar.stdout)


def test_builds_and_is_small(engine, tmp_path):
    """`make image` on that base: all programs are there, no build tools, no certificates of ours, below 220 MB."""
    import_base(engine, tmp_path)
    environment = {**os.environ, "DOCKER_HOST": engine.host, "DOCKER_BUILDKIT": "0"}
    built = subprocess.run(["make", "image", "BASE=debian-base"], cwd=rootfs.ROOT, env=environment, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert built.returncode == 0, built.stdout[-4000:]
    size = int(engine.run("image", "inspect", "-f", "{{.Size}}", rootfs.IMAGE).stdout)
    print(f"the image has {size / 1e6:.0f} MB")
    assert size < 220e6
    shell = ("run", "--rm", "--net=host", "--entrypoint=sh", rootfs.IMAGE, "-c")
    assert engine.run(*shell, "calico-node --version && calicoctl version --client").returncode == 0
    for program in ("calico-driver", "calico-agent", "bird", "s6-svscan", "iptables", "nft", "etcd"):
        engine.run(*shell, f"command -v {program}")
    for absent in ("pip", "gcc", "apt-get", "perl"):
        assert engine.run(*shell, f"command -v {absent}", check=False).returncode != 0, absent
    left = engine.run(*shell, "ls -A /src /etc/ssl/certs /usr/local/share/ca-certificates 2>/dev/null", check=False)
    assert left.stdout == ""
    checked = engine.run("image", "inspect", "-f", "{{json .Config.Healthcheck.Test}}", rootfs.IMAGE).stdout
    assert checked.strip() == '["CMD","calico-node","-felix-ready","-bird-ready"]'
