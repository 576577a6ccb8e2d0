"""Where calicoctl finds the datastore."""

from __future__ import annotations

from pathlib import Path

import pytest

from calico_plugin.cli import settings
from calico_plugin.errors import InvalidInput

V3 = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n"


def test_environment_when_there_is_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a file the environment counts, and the source says so."""
    monkeypatch.setattr(settings, "DEFAULT_FILE", tmp_path / "none.cfg")
    found = settings.load(None, {"ETCD_ENDPOINTS": "http://a:2379,http://b:2379"})
    assert found.endpoints == ("http://a:2379", "http://b:2379")
    assert "environment" in found.source


def test_file_wins_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the file is there, the environment is not looked at."""
    file = tmp_path / "calicoctl.cfg"
    file.write_text(V3 + "  etcdEndpoints: https://e:2379\n  etcdCACertFile: /ca.crt\n")
    monkeypatch.setattr(settings, "DEFAULT_FILE", file)
    found = settings.load(None, {"ETCD_ENDPOINTS": "http://a:2379", "ETCD_USERNAME": "u"})
    assert (found.endpoints, found.ca_cert_file, found.username) == (("https://e:2379",), "/ca.crt", "")
    assert found.source == str(file)


def test_old_form() -> None:
    """The v1 form with authority and scheme is understood."""
    text = "apiVersion: v1\nkind: calicoApiConfig\nspec:\n  etcdAuthority: h:4001\n  etcdScheme: https\n"
    assert settings.from_text(text, "f").endpoints == ("https://h:4001",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (V3 + "  etcdEndpoint: x\n", "did you mean etcdEndpoints"),
        ("apiVersion: v2\nkind: X\n", "CalicoAPIConfig"),
        (V3 + "  datastoreType: kubernetes\n", "only etcdv3"),
        (V3 + "  etcdDiscoverySrv: x.example\n", "etcdEndpoints"),
        ("[", "not valid YAML"),
        ("x", "apiVersion, kind and spec"),
    ],
)
def test_bad_files_are_explained(text: str, expected: str) -> None:
    """What is wrong with a file is named with the file."""
    with pytest.raises(InvalidInput, match=expected) as caught:
        settings.from_text(text, "the-file")
    assert "the-file" in str(caught.value)


def test_named_file_must_exist(tmp_path: Path) -> None:
    """A file that the user names is not skipped."""
    with pytest.raises(InvalidInput, match="Error reading config file"):
        settings.load(tmp_path / "nope.cfg", {"ETCD_ENDPOINTS": "http://a:2379"})


def test_overruled_environment_is_told() -> None:
    """A file that silently wins over the environment has cost people hours."""
    chosen = settings.from_text(V3 + "  etcdEndpoints: http://e:2379\n", "the-file")
    assert "the-file is used" in settings.overruled(chosen, {"ETCD_ENDPOINTS": "http://a:2379"})
    assert settings.overruled(chosen, {"ETCD_ENDPOINTS": "http://e:2379"}) == ""
    assert settings.overruled(chosen, {}) == ""


def test_certificates_inside_the_file() -> None:
    """They become files that only this user can read."""
    found = settings.from_text(V3 + "  etcdEndpoints: https://e:2379\n  etcdCACert: |\n    PEM\n", "f")
    file = Path(found.ca_cert_file)
    assert file.read_text() == "PEM\n" and file.stat().st_mode & 0o777 == 0o600
