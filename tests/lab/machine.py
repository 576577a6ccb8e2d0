"""One machine of a lab: made of namespaces, entered with nsenter, switched off by ending its process 1.

Everything is done by process id. What belongs to a machine is told by its mount (and PID) namespace, never by a
process name: other labs, and the real Docker of the machine that runs us, have processes of the same names.
"""
from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

from tests.lab.place import realm
from tests.lab.wait import wait_for

MARK = "CALICO_LAB"  # in the environment of all that runs on a machine: "<place>/<lab>/<machine>"
INIT = Path(__file__).with_name("hostinit.py")
BOOT_SECONDS = 20
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class CommandFailed(AssertionError):
    """A command on a machine ended with a status that was not expected."""


@dataclass(frozen=True)
class Process:
    """A process of a machine; ``pid`` as seen from outside, ``started`` guards against a reused number."""

    pid: int
    started: int
    argv: tuple[str, ...]
    state: str = "S"

    @property
    def text(self) -> str:
        """The command line in one string."""
        return " ".join(self.argv)

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        now = read_process(self.pid)
        return now is not None and now.started == self.started and now.state != "Z"

    def send(self, number: int) -> None:
        """Signal it; no error when it has gone."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def end(self, seconds: float = 15) -> None:
        """SIGTERM, then after the time SIGKILL; returns when it has gone."""
        self.send(signal.SIGTERM)
        try:
            wait_for(f"the end of {self.pid}", lambda: not self.alive(), seconds, 0.05)
        except AssertionError:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait until it has gone."""
        self.send(signal.SIGKILL)
        wait_for(f"the end of {self.pid} ({self.text[:60]}) after SIGKILL", lambda: not self.alive(), 10, 0.02)


def read_process(pid: int) -> Process | None:
    """What /proc says of a process, or None when there is none."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    words = tuple(word.decode(errors="replace") for word in argv.rstrip(b"\0").split(b"\0"))
    return Process(pid, int(fields[19]), words, fields[0])


def all_pids() -> Iterator[int]:
    """Every process id that can be seen."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def marked(prefix: str) -> list[Process]:
    """Processes of this place whose mark, after the place, starts with ``prefix`` ('lab/').

    The environment's entries end with a NUL byte: a prefix that ends with one is a whole value."""
    wanted = f"\0{MARK}={realm()}/{prefix}".encode()
    found = []
    for pid in all_pids():
        try:
            environment = b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environment and (process := read_process(pid)) and process.state != "Z":
            found.append(process)
    return found


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


@dataclass(frozen=True)
class Machine:
    """A running machine. ``init`` is its process 1, ``logs`` the folder of its logs outside."""

    lab: str
    name: str
    init: Process
    logs: Path
    own_pids: bool = True

    # -- entering ------------------------------------------------------------------------------------------------
    def command(self, argv: Sequence[str], env: dict[str, str] | None = None) -> list[str]:
        """The outer command line that runs ``argv`` on this machine."""
        enter = ["nsenter", "-t", str(self.init.pid), "-m", "-u", "-i", "-n"] + (["-p"] if self.own_pids else [])
        pairs = [f"{key}={value}" for key, value in {**self.environment(), **(env or {})}.items()]
        return [*enter, "--", "/usr/bin/env", "-i", *pairs, *argv]

    def environment(self) -> dict[str, str]:
        """What a root shell has there. Our own console scripts come first on the PATH."""
        scripts = Path(sys.executable).parent
        return {"PATH": f"{scripts}:{SYSTEM_PATH}", "HOME": "/root", "LANG": "C.UTF-8", "USER": "root",
                "TERM": os.environ.get("TERM", "dumb"), MARK: f"{realm()}/{self.lab}/{self.name}"}

    def run(self, *argv: str, seconds: float = 60, env: dict[str, str] | None = None, stdin: bytes | None = None,
            check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end, or for at most ``seconds`` (status 124 or 137 then).

        Standard output and error come together, in order, as ``stdout``. With ``check`` a status other than 0 raises
        CommandFailed with the command and its output.
        """
        # The time-out acts inside: ending nsenter would leave the command running.
        inner = ["timeout", "-k", "3", f"{seconds:g}", *argv]
        done = subprocess.run(self.command(inner, env), input=stdin if stdin is not None else b"",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        answer = subprocess.CompletedProcess(list(argv), done.returncode, done.stdout.decode(errors="replace"))
        if check and answer.returncode != 0:
            raise CommandFailed(f"{self.name}# {shlex.join(argv)}\nstatus {answer.returncode}\n{answer.stdout}")
        return answer

    def shell(self, script: str, **options) -> str:
        """Run a shell script there and return its output."""
        return self.run("/bin/sh", "-c", script, **options).stdout

    def popen(self, *argv: str, env: dict[str, str] | None = None, **options) -> subprocess.Popen:
        """Start a command there that the caller looks after (and ends: it does not survive the caller's end)."""
        return subprocess.Popen(self.command(["setpriv", "--pdeathsig", "KILL", *argv], env), **options)

    def spawn(self, log: str, *argv: str, env: dict[str, str] | None = None) -> None:
        """Start a daemon there as an init script would: a child of process 1, its output appended to a log."""
        script = 'exec "$@" >>"$0" 2>&1 </dev/null'
        subprocess.run(self.command(["setsid", "--fork", "/bin/sh", "-c", script, str(self.logs / log), *argv], env),
                       check=True)

    # -- looking -------------------------------------------------------------------------------------------------
    def processes(self) -> list[Process]:
        """All processes of the machine itself, those of its containers not among them."""
        mounts = _namespace(self.init.pid, "mnt")
        pids = _namespace(self.init.pid, "pid")
        found = []
        for pid in all_pids():
            if _namespace(pid, "mnt") == mounts and _namespace(pid, "pid") == pids:
                process = read_process(pid)
                if process and process.state != "Z":
                    found.append(process)
        return found

    def running(self) -> bool:
        """Whether the machine is switched on."""
        return self.init.alive()

    # -- off -----------------------------------------------------------------------------------------------------
    def power_off(self) -> None:
        """As if the plug was pulled: all its processes end at once, its namespaces and mounts with them."""
        everything = [self.init, *marked(f"{self.lab}/{self.name}\0")]
        for process in everything:
            process.send(signal.SIGKILL)
        for process in everything:
            process.kill()


def boot(lab: str, name: str, folder: Path, logs: Path, binds: Sequence[tuple[str, str]], files: dict[str, str],
         own_pids: bool = True, systemd: str = "") -> Machine:
    """Make a machine. ``folder`` keeps what a disk would keep, ``binds`` maps parts of it to paths on the machine.

    ``systemd``: a control group of the machine's own, in which systemd runs as its process 1.
    """
    cow = folder / "cow"
    for path in [cow, logs, *(Path(source) for source, _ in binds)]:
        path.mkdir(parents=True, exist_ok=True)
    spec = {"name": name, "cow": str(cow), "binds": list(binds), "files": files, "systemd": systemd or None}
    kinds = ["--mount", "--uts", "--ipc", "--net", *(["--pid"] if own_pids else [])]
    process = subprocess.Popen(
        ["unshare", *kinds, "--fork", "/usr/bin/python3", "-I", str(INIT), f"{lab}/{name}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", MARK: f"{realm()}/{lab}/{name}"})
    assert process.stdin is not None and process.stdout is not None
    with process.stdin:
        process.stdin.write(json.dumps(spec).encode())
    said = process.stdout.readline() if select.select([process.stdout], [], [], BOOT_SECONDS)[0] else b"nothing"
    if said != b"ready\n":
        process.kill()
        raise CommandFailed(f"machine {name} did not start: {(said + process.stdout.read()).decode()}")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    init = read_process(int(children[0]))
    assert init is not None, f"machine {name} ended at once"
    # unshare stays as the parent of process 1 and is nobody's child to wait for: it ends with the machine.
    process.stdout.close()
    process.returncode = 0
    return Machine(lab, name, init, logs, own_pids)
