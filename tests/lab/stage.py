"""What is seen of the demo: commands at a prompt with their real output, and checks that came true or did not."""
from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Callable, TextIO

from tests.lab import rootfs
from tests.lab.lab import Lab
from tests.lab.wait import wait_for

TICK_SECONDS = 5


class StepFailed(Exception):
    """A check failed without which the rest makes no sense."""


@dataclass
class Stage:
    """What is seen, and what was found true or false."""

    lab: Lab
    out: TextIO = field(default_factory=lambda: sys.stdout)
    in_container: bool = False
    checks: list[tuple[str, bool]] = field(default_factory=list)
    _step: int = 0

    def title(self, text: str) -> None:
        """Start a step."""
        self._step += 1
        self.say("\n" + self._bold(f"== {self._step}. {text}"))

    def say(self, text: str) -> None:
        """A line of explanation."""
        print(text, file=self.out, flush=True)

    def prompt(self, host: str, line: str) -> None:
        """Show a command at a host's prompt."""
        self.say(self._bold(f"{host}# {line}"))

    def type(self, host: str, line: str, seconds: float = 60) -> str:
        """Show a command at a host's prompt, run it, show its real output while it comes, and return it."""
        self.prompt(host, line)
        words = ("timeout", "-k", "3", str(seconds), "/bin/sh", "-c", line)
        process = self.lab[host].popen(*words, env=self.settings, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        lines = []
        with ticking(self.say):
            for piece in process.stdout:
                lines.append(piece)
                self.say(piece.rstrip("\n"))
            process.wait()
        return "".join(lines)

    def check(self, what: str, true: bool, needed: bool = False) -> bool:
        """Note whether something is as it should be. ``needed``: without it the play ends here."""
        self.checks.append((what, bool(true)))
        self.say(self._colour(32, f"  [ok] {what}") if true else self._colour(31, f"  [FAILED] {what}"))
        if needed and not true:
            raise StepFailed(what)
        return bool(true)

    def until(self, what: str, probe: Callable[[], object], seconds: float, needed: bool = False) -> bool:
        """A check that may take a while to come true."""
        try:
            with ticking(self.say):
                wait_for(what, probe, seconds, 0.3)
        except AssertionError as reason:
            self.say(f"  {reason}")
            return self.check(what, False, needed)
        return self.check(what, True)

    @property
    def node_run(self) -> str:
        """The command that starts Calico on a host."""
        return "calicoctl node run" + (f" --node-image={rootfs.IMAGE}" if self.in_container else "")

    @property
    def settings(self) -> dict[str, str]:
        """What the user has exported on every host."""
        return {"ETCD_ENDPOINTS": self.lab.spec.etcd_url}

    def _colour(self, number: int, text: str) -> str:
        return f"\033[{number}m{text}\033[0m" if self.out.isatty() else text

    def _bold(self, text: str) -> str:
        return self._colour(1, text)


class ticking:
    """While a block takes long, say every few seconds that it still runs."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        began = time.monotonic()
        while not self._over.wait(TICK_SECONDS):
            self._say(f"  ... {time.monotonic() - began:.0f} s")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
