"""Where labs live on disk, who may use which, and what an earlier run left behind."""
from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import IO

from tests.lab.machine import Machine, Process, marked, read_process
from tests.lab.place import ROOT, realm
from tests.lab.spec import DockerRelease, LabSpec

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_PARENT = "calico-lab"


def folder(name: str) -> Path:
    """The folder of a lab: ``disks/``, ``logs/``, ``state.json``."""
    return ROOT / name


class Claim:
    """The right to build the lab of a name, held as long as this object's process lives (a file lock)."""

    def __init__(self, name: str, handle: IO[str]) -> None:
        self.name = name
        self._handle = handle

    def release(self) -> None:
        """Let others have it."""
        self._handle.close()


def claim(name: str) -> Claim | None:
    """Claim a lab's name, or None when a live process holds it."""
    ROOT.mkdir(parents=True, exist_ok=True)
    handle = open(ROOT / f"{name}.lock", "w", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    return Claim(name, handle)


def claim_free(stem: str, tries: int = 16) -> Claim:
    """Claim the first free of ``stem-1``, ``stem-2``, ...: several test runs may happen at once.

    What a crashed owner of that name left behind is cleared.
    """
    for number in range(1, tries + 1):
        if found := claim(f"{stem}-{number}"):
            clear(found.name, keep_logs=False)
            return found
    raise AssertionError(f"{tries} labs named {stem}-N are in use at once")


def save(spec: LabSpec, machines: dict[str, Machine]) -> None:
    """Write down a running lab, so that another process can find it."""
    kinds = {"release": _written(spec.release), "mixed": [_written(one) for one in spec.mixed]}
    data = {"spec": {**asdict(spec), **kinds},
            "machines": {name: [one.init.pid, one.init.started] for name, one in machines.items()}}
    path = folder(spec.name) / "state.json"
    path.write_text(json.dumps(data, indent=1))


def load(name: str) -> tuple[LabSpec, dict[str, Machine]]:
    """Read what ``save`` wrote; FileNotFoundError when there is no such lab."""
    data = json.loads((folder(name) / "state.json").read_text())
    release, mixed = _release(data["spec"].pop("release")), tuple(map(_release, data["spec"].pop("mixed", ())))
    data["spec"]["docker_options"] = tuple(data["spec"]["docker_options"])
    spec = LabSpec(**data["spec"], release=release, mixed=mixed)
    machines = {host: Machine(name, host, Process(pid, started, ()), folder(name) / "logs" / host, spec.own_pids)
                for host, (pid, started) in data["machines"].items()}
    return spec, machines


def _written(release: DockerRelease) -> dict:
    return {**asdict(release), "root": str(release.root or "")}


def _release(written: dict) -> DockerRelease:
    root = Path(written["root"]) if written["root"] else None
    return DockerRelease(written["label"], root, written["cluster_store"])


def clear(name: str, keep_logs: bool = True) -> list[str]:
    """End whatever is left of a lab of this name, by process id, and remove its disks.

    Returns one line for each process that still ran. Needs no state file: the mark in the environment tells.
    """
    left = marked(f"{name}/")
    for process in left:
        process.send(9)
    for process in left:
        process.kill()
    _remove_cgroups(name)
    place = folder(name)
    for path in [place / "disks", place / "state.json", *([] if keep_logs else [place / "logs"])]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not keep_logs and place.is_dir():
        shutil.rmtree(place)
    return [f"{process.pid} {process.text[:100]}" for process in left]


def clear_abandoned(stem: str, tries: int = 16) -> None:
    """Take down labs ``stem-N`` whose owner has died."""
    for number in range(1, tries + 1):
        name = f"{stem}-{number}"
        if folder(name).exists() and (own := claim(name)):
            clear(name, keep_logs=False)
            own.release()


def cgroup_parent(lab: str, host: str) -> str:
    """Where a host's containers are put; below a name of ours, so that leftovers can be told and removed."""
    return f"/{CGROUP_PARENT}/{lab}-{realm()}/{host}"


def _remove_cgroups(name: str) -> None:
    """End what runs in the control groups of a lab (containers, where hosts share PIDs), and remove the groups."""
    own = f"{CGROUP_PARENT}/{name}-{realm()}"
    for tree in [*CGROUP_ROOT.glob(f"*/{own}"), CGROUP_ROOT / own]:
        for path, _, _ in os.walk(tree, topdown=False):
            members = Path(path) / "cgroup.procs"
            for pid in members.read_text().split() if members.exists() else []:
                if process := read_process(int(pid)):
                    process.kill()
            _rmdir(path)
    for parent in [*CGROUP_ROOT.glob(f"*/{CGROUP_PARENT}"), CGROUP_ROOT / CGROUP_PARENT]:
        _rmdir(parent)  # goes with the last lab


def _rmdir(path: str | Path) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass
