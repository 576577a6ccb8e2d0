"""The parts of a host as s6 service directories: one-line scripts, rendered here; s6 starts, restarts and ends them."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from calico_plugin.config import Settings
from calico_plugin.errors import InvalidInput

# Scripts wait for these very words.
STARTED = "Calico node started successfully"
FAILED = "Calico node failed to start"
DRIVER, AGENT, BIRD, ETCD = "calico-driver", "calico-agent", "bird", "etcd"
# 10 MB and five old files a part: a log never fills the disk.
LOG_FILES, LOG_BYTES = 5, 10_000_000
# How long s6 lets a part end by itself after SIGTERM; calico-node as a whole has about 10 s.
KILL_MILLISECONDS = 5000


@dataclass(frozen=True, slots=True)
class Service:
    """`command` is what runs in the foreground; `environment` adds to what calico-node itself has."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def run_script(self) -> str:
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(self.environment.items()))
        return f"#!/bin/sh\nexec 2>&1\n{exports}exec {shlex.join(self.command)}\n"


def log_script(folder: Path | None, forward: bool) -> str:
    """s6-log to a rotated folder, to our standard output, or both."""
    words = ["s6-log", "-b", f"n{LOG_FILES}", f"s{LOG_BYTES}"]
    if forward or folder is None:
        words.append("1")
    if folder is not None:
        words += ["T", str(folder)]
    return f"#!/bin/sh\nexec {shlex.join(words)}\n"


def write(service: Service, scan_dir: Path, log_dir: Path | None, forward: bool) -> None:
    """Make a service directory; s6-svscan looks at it when told to."""
    folder = scan_dir / service.name
    (folder / "log").mkdir(parents=True, exist_ok=True)
    _script(folder / "log" / "run", log_script(log_dir / service.name if log_dir else None, forward))
    (folder / "timeout-kill").write_text(str(KILL_MILLISECONDS))
    _script(folder / "run", service.run_script())


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def console_script(name: str) -> str:
    """One of our own programs: beside the Python that runs us, else on the PATH. Raises InvalidInput."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        hint = f"{name} is not installed beside {sys.executable}; install this package with pip"
        raise InvalidInput("PATH", hint=hint)
    return found


def parts(settings: Settings) -> tuple[Service, ...]:
    """Driver, agent and BIRD, as far as the settings want them."""
    wanted = []
    if settings.node.run_driver:
        wanted.append(Service(DRIVER, (console_script(DRIVER),)))
    if settings.node.run_agent:
        wanted.append(Service(AGENT, (console_script(AGENT),)))
    if settings.node.backend == "bird":
        launcher = (sys.executable, "-m", "calico_plugin.node.launch_bird", str(settings.run_dir))
        wanted.append(Service(BIRD, launcher))
    return tuple(wanted)
