"""calicoctl, kept running: a line of JSON {"words", "stdin"} in, one {"status", "text"} out, for each command line.

Run by ``wire.Calicoctl`` on a lab host, where starting Python for hundreds of commands would take minutes.
"""
from __future__ import annotations

import contextlib
import io
import json
import sys

from calico_plugin.cli.main import run


def main() -> None:
    """Until the input ends."""
    asked, told = sys.stdin, sys.stdout
    for line in asked:
        command = json.loads(line)
        sys.stdin = io.StringIO(command["stdin"])
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            status = run(command["words"])
        print(json.dumps({"status": status, "text": text.getvalue()}), file=told, flush=True)


if __name__ == "__main__":
    main()
