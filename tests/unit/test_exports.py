"""The public door of each package: `__all__` is a sorted list of strings that all exist."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import calico_plugin

PACKAGES = [module.name for module in pkgutil.walk_packages(calico_plugin.__path__, "calico_plugin.") if module.ispkg]


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_complete_and_sorted(name: str) -> None:
    """A star import works, and nobody has to look for a name in a list."""
    package = importlib.import_module(name)
    exported = getattr(package, "__all__", None)
    if exported is None:
        return
    assert all(isinstance(entry, str) for entry in exported)
    assert list(exported) == sorted(exported) and len(set(exported)) == len(exported)
    assert [entry for entry in exported if not hasattr(package, entry)] == []


def test_importing_the_package_does_nothing() -> None:
    """`import calico_plugin` gives the version and no more."""
    public = {name for name in vars(calico_plugin) if not name.startswith("_")}
    submodules = {module.name for module in pkgutil.iter_modules(calico_plugin.__path__)}
    assert public <= submodules and calico_plugin.__version__
