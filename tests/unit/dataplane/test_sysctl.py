"""Settings are read before they are written."""

from __future__ import annotations

from pathlib import Path

from calico_plugin.dataplane import sysctl


def test_right_setting_is_left_alone(tmp_path: Path) -> None:
    """Nothing is written when the value is right, and a missing setting is no error."""
    (tmp_path / "a").write_text("1\n")
    assert not sysctl.ensure("a", "1", (tmp_path,))
    assert (tmp_path / "a").read_text() == "1\n"
    assert not sysctl.ensure("gone", "1", (tmp_path,))
    assert sysctl.read("gone", (tmp_path,)) is None


def test_wrong_setting_is_written(tmp_path: Path) -> None:
    """And it is said that it was."""
    (tmp_path / "a").write_text("0\n")
    assert sysctl.ensure("a", "1", (tmp_path,))
    assert sysctl.read("a", (tmp_path,)) == "1"
