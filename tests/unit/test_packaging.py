"""What `pip install` gives: the four programs, the data files, the version."""

from __future__ import annotations

import configparser
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import calico_plugin

HERE = Path(__file__).parents[2]


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(HERE / "setup.cfg")
    return parser


SCRIPTS = dict(
    re.split(r"\s*=\s*", line) for line in _setup()["options.entry_points"]["console_scripts"].strip().splitlines()
)


def test_the_four_programs() -> None:
    """Scripts and other tools rely on these names."""
    assert set(SCRIPTS) == {"calicoctl", "calico-driver", "calico-agent", "calico-node"}


@pytest.mark.parametrize("target", SCRIPTS.values())
def test_entry_points_exist(target: str) -> None:
    """Each program's function is there and can be imported without side effects."""
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_packages_and_data_are_found() -> None:
    """Every folder with Python files is a package, and the typing marker is there."""
    folders = {path.parent for path in (HERE / "calico_plugin").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
    assert (HERE / "calico_plugin" / "py.typed").exists()


def test_every_dependency_is_pinned_for_ci() -> None:
    """constraints.txt names each direct dependency with one version."""
    pins = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (HERE / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = {
        re.split(r"[><=~]", line)[0].lower() for line in _setup()["options"]["install_requires"].strip().splitlines()
    }
    assert wanted - pins == set()


def test_module_form() -> None:
    """`python -m calico_plugin` is calicoctl."""
    answer = subprocess.run(
        [sys.executable, "-m", "calico_plugin", "version", "--client"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert calico_plugin.__version__ in answer.stdout
