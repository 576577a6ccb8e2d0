"""`calicoctl node checksystem` on made-up hosts, and diagnostics."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from calico_plugin.config import Settings
from calico_plugin.node import checks, diags


@pytest.mark.parametrize(
    ("release", "result"),
    [("6.1.0-13-amd64", "OK"), ("2.6.24", "OK"), ("2.6.23", "FAIL"), ("3.10", "OK"), ("strange", "FAIL")],
)
def test_kernel_versions(release: str, result: str) -> None:
    """Anything from 2.6.24 on will do."""
    assert checks.kernel_version(release).result == result


def results(root: Path, config: Path | None = None) -> dict[str, str]:
    return {one.item: one.result for one in checks.modules("6.1", config, root)}


def test_modules_are_found_in_every_place(tmp_path: Path) -> None:
    """/sys/module, modules.dep with compressed files, modules.builtin, and the kernel's configuration."""
    (tmp_path / "sys/module/xt_set").mkdir(parents=True)
    folder = tmp_path / "lib/modules/6.1"
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("kernel/net/xt_mark.ko.zst: kernel/net/x_tables.ko\nkernel/vfio-pci.ko.xz:\n")
    (folder / "modules.builtin").write_text("kernel/net/ip_tables.ko\n")
    (tmp_path / "proc").mkdir()
    options = b"CONFIG_IP_SET=m\n# CONFIG_NETFILTER_XT_MATCH_U32 is not set\n"
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(options))
    found = results(tmp_path)
    for name in ("xt_set", "xt_mark", "vfio-pci", "ip_tables", "ip_set"):
        assert found[name] == "OK", name
    assert found["xt_u32"] == "SKIP", "optional ones are no failure"


def test_a_named_configuration_is_the_one_read(tmp_path: Path) -> None:
    """--kernel-config replaces the usual places."""
    config = tmp_path / "config"
    config.write_text("CONFIG_NETFILTER_XT_MATCH_U32=y\n")
    assert results(tmp_path, config)["xt_u32"] == "OK"


def test_lines_have_the_originals_shape() -> None:
    """Two tabs, the item padded to 20, five tabs, the result."""
    assert str(checks.Check("xt_set", "OK")) == "\t\txt_set              \t\t\t\t\tOK"


def test_diags_mask_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive has the logs, and no password; it is readable by its owner only."""
    monkeypatch.setattr(diags, "COMMANDS", {"date": "date", "absent": "no-such-program-here", "failing": "false"})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "x.log").write_text("line\n")
    (tmp_path / "bird.conf").write_text('protocol bgp x { password "s3cret"; }\n')
    folders = {"CALICO_LOG_DIR": str(tmp_path / "log"), "CALICO_RUN_DIR": str(tmp_path)}
    settings = Settings.from_env({"NODENAME": "a", **folders})
    said: list[str] = []
    archive = diags.collect(settings, said.append)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        conf = tar.extractfile("diagnostics/bird.conf")
        assert conf is not None and conf.read() == b'protocol bgp x { password "********"; }\n'
    assert "diagnostics/date" in names and "diagnostics/logs/x.log" in names
    assert any("not installed" in line for line in said) and any("status 1" in line for line in said)
    assert archive.stat().st_mode & 0o077 == 0
