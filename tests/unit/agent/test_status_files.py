"""The directory that Join watches."""

from __future__ import annotations

import json
from pathlib import Path

from calico_plugin.agent.status_files import StatusFiles, content


def test_content_is_felix_s() -> None:
    """Only members that are not empty, networks with their prefix lengths."""
    assert json.loads(content("cali1", "", ("10.0.0.1",))) == {"ifaceName": "cali1", "ipv4Nets": ["10.0.0.1/32"]}
    assert json.loads(content("cali1", "02:00:00:00:00:01", ("fd00::1",))) == {
        "ifaceName": "cali1",
        "mac": "02:00:00:00:00:01",
        "ipv6Nets": ["fd00::1/128"],
    }


def test_right_files_stay_others_go(tmp_path: Path) -> None:
    """A restart keeps the very same file, repairs a wrong one and removes a foreign one."""
    files = StatusFiles(tmp_path)
    files.read()
    for name in ("right", "wrong"):
        files.want(name, b"{}")
    assert not files.write()
    before = (files.directory / "right").stat()
    (files.directory / "wrong").write_text("half")
    (files.directory / "foreign").write_text("{}")
    again = StatusFiles(tmp_path)
    again.read()
    again.want("right", b"{}")
    again.want("wrong", b"{}")
    assert not again.remove() and not again.write()
    after = (files.directory / "right").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in files.directory.iterdir()) == ["right", "wrong"]
    assert (files.directory / "wrong").read_bytes() == b"{}"


def test_error_is_told_and_tried_again(tmp_path: Path) -> None:
    """A file that cannot be written stays to be written."""
    files = StatusFiles(tmp_path)
    files.read()
    files.want("one", b"{}")
    files.directory.rmdir()
    assert [error.name for error in files.write()] == ["one"]
    files.read()
    assert not files.write()
    assert (files.directory / "one").exists()
