"""The lab by hand: ``python -m tests.lab up``, ``shell host1``, ``down``; ``python -m tests.lab --help``."""
from __future__ import annotations

import argparse
import os
import sys
from typing import Sequence

from tests.lab import lab as labs
from tests.lab import state
from tests.lab.diagnostics import dump
from tests.lab.spec import LabSpec


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--name", default="lab", help="which lab (default: lab); several may be up at once")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="build a lab with Docker and etcd running; calico-node is yours to start")
    up.add_argument("--hosts", type=int, default=2)
    up.add_argument("--no-cluster-store", action="store_true", help="Docker hosts that know nothing of each other")
    up.add_argument("--shared-pids", action="store_true", help="no PID namespace for each host")
    up.add_argument("--no-default-route", action="store_true", help="hosts without a default route")
    up.add_argument("--calico", action="store_true", help="also run calico-node on every host")
    commands.add_parser("down", help="switch all off and remove what it left, after a crash too")
    commands.add_parser("status", help="what is up")
    commands.add_parser("dump", help="write down the state of all machines in the log folder")
    shell = commands.add_parser("shell", help="a root shell on a machine")
    shell.add_argument("machine")
    execute = commands.add_parser("exec", help="one command on a machine")
    execute.add_argument("machine")
    execute.add_argument("argv", nargs=argparse.REMAINDER)
    commands.add_parser("demo", help="play the experiment (KEEP=1 leaves it up)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    args = arguments(argv)
    if os.geteuid() != 0:
        print("the lab makes namespaces, which needs root: use sudo", file=sys.stderr)
        return 1
    try:
        return globals()[f"do_{args.command}"](args)
    except LookupError as problem:
        print(problem.args[0], file=sys.stderr)
        return 1


def do_up(args: argparse.Namespace) -> int:
    """Build a lab."""
    spec = LabSpec(args.name, args.hosts, cluster_store=not args.no_cluster_store, own_pids=not args.shared_pids,
                   default_route=not args.no_default_route)
    if not state.claim(args.name):
        raise LookupError(f"another process is using the lab {args.name!r} right now; take another --name")
    lab = labs.up(spec, print)
    for host in lab.hosts if args.calico else ():
        print(lab.node(host).run(), end="")
    print(f"up; next: {command_line(args.name)} shell host1")
    return 0


def do_down(args: argparse.Namespace) -> int:
    """Take a lab down."""
    for line in state.clear(args.name, keep_logs=False):
        print("ended", line)
    return 0


def do_status(args: argparse.Namespace) -> int:
    """List machines and what runs on them."""
    lab = labs.attach(args.name)
    for machine in lab.machines.values():
        print(f"{machine.name} (process 1 is {machine.init.pid}), logs in {machine.logs}")
        for process in machine.processes():
            print(f"  {process.pid:>8} {process.text[:120]}")
    return 0


def do_dump(args: argparse.Namespace) -> int:
    """Write diagnostics."""
    print(dump(labs.attach(args.name), "by hand"))
    return 0


def do_shell(args: argparse.Namespace) -> int:
    """Become a shell on a machine."""
    machine = labs.attach(args.name)[args.machine]
    settings = {"PS1": f"{machine.name}# ", "ETCD_ENDPOINTS": labs.attach(args.name).spec.etcd_url}
    line = machine.command(["bash", "--norc"], settings)
    os.execvp(line[0], line)


def do_exec(args: argparse.Namespace) -> int:
    """Become a command on a machine."""
    lab = labs.attach(args.name)
    words = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    line = lab[args.machine].command(words, {"ETCD_ENDPOINTS": lab.spec.etcd_url})
    os.execvp(line[0], line)


def do_demo(args: argparse.Namespace) -> int:
    """Play the experiment."""
    from tests.lab.demo import main as demo
    return demo()


def command_line(name: str) -> str:
    """How a user calls this program for a lab."""
    return f"sudo {sys.executable} -m tests.lab" + ("" if name == "lab" else f" --name {name}")


if __name__ == "__main__":
    sys.exit(main())
