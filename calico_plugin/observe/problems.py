"""What a running part cannot do as configured, as files for `calicoctl node status`: one JSON list of sentences a part.

The agent writes them in the run directory, `problems/<part>.json`, whole (by rename) and only when they change; an
empty list takes the file away. Whoever reads finds the state as it is now, without asking the agent.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Sequence

BIRD, ENCAPSULATION, NAMES, LABELS, NETWORKS, POLICY = "bird", "encapsulation", "names", "labels", "networks", "policy"
FOLDER = "problems"


class Problems:
    """For one run directory; each part has one writer."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / FOLDER

    def tell(self, part: str, sentences: Sequence[str]) -> None:
        """Never raises: it is the least important thing that a part does."""
        path = self._folder / f"{part}.json"
        try:
            if not sentences:
                path.unlink(missing_ok=True)
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(list(sentences)))
            os.replace(fresh, path)
        except OSError:
            pass

    def read(self) -> dict[str, list[str]]:
        """Part -> its sentences; files that are none are passed over."""
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            try:
                told = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if isinstance(told, list):
                found[path.stem] = [str(one) for one in told]
        return found
