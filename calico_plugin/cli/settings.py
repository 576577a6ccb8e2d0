"""How calicoctl reaches the datastore: the configuration file if there is one, else the environment (node-and-cli 4.1).

The file wins as a whole: a setting that it lacks is not looked for in the environment. Every error names the source
that was used.
"""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path
from typing import Any, Mapping

from calico_plugin.config import DEFAULT_ENDPOINT, DatastoreSettings, datastore_from_env
from calico_plugin.errors import InvalidInput
from calico_plugin.model.problem import did_you_mean
from calico_plugin.model.resources.meta import API_VERSION

DEFAULT_FILE = Path("/etc/calico/calicoctl.cfg")

_FORMS = {(API_VERSION, "CalicoAPIConfig"): "etcdv3", ("v1", "calicoApiConfig"): "etcdv2"}
_FIELDS = {
    "etcdUsername": "username",
    "etcdPassword": "password",
    "etcdKeyFile": "key_file",
    "etcdCertFile": "cert_file",
    "etcdCACertFile": "ca_cert_file",
}
# Certificates that stand in the file itself -> the setting that takes a file.
_INLINE = {"etcdKey": "key_file", "etcdCert": "cert_file", "etcdCACert": "ca_cert_file"}
_KNOWN = ("datastoreType", "etcdEndpoints", "etcdAuthority", "etcdScheme", "etcdDiscoverySrv", *_FIELDS, *_INLINE)


def load(path: Path | None, environ: Mapping[str, str]) -> DatastoreSettings:
    """Settings of the named file, of the default file when it is there, or of the environment. Raises InvalidInput."""
    if path is None and not DEFAULT_FILE.exists():
        return datastore_from_env(environ)
    chosen = path or DEFAULT_FILE
    try:
        text = chosen.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("--config", str(chosen), f"Error reading config file: {chosen}: {error}") from error
    return from_text(text, str(chosen))


def overruled(chosen: DatastoreSettings, environ: Mapping[str, str]) -> str:
    """A warning when the environment names other endpoints than the file that is used; else nothing."""
    there = environ.get("CALICO_ETCD_ENDPOINTS") or environ.get("ETCD_ENDPOINTS") or ""
    endpoints = tuple(part.strip() for part in there.split(",") if part.strip())
    if not endpoints or endpoints == chosen.endpoints or "environment" in chosen.source:
        return ""
    return f"Warning: {chosen.source} is used; ETCD_ENDPOINTS={there} in the environment is not"


def from_text(text: str, name: str) -> DatastoreSettings:
    """Settings of a configuration file's text (YAML or JSON)."""
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(name, None, f"is not valid YAML or JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput(name, None, "must hold apiVersion, kind and spec")
    _check_form(document, name)
    spec = document.get("spec") or {}
    for field in spec:
        if field not in _KNOWN:
            raise InvalidInput(f"{name}: spec.{field}", None, f"unknown field{did_you_mean(str(field), _KNOWN)}")
    if spec.get("etcdDiscoverySrv"):
        hint = "is not offered here; write the endpoints into etcdEndpoints"
        raise InvalidInput(f"{name}: spec.etcdDiscoverySrv", spec["etcdDiscoverySrv"], hint)
    given = {ours: str(spec[theirs]) for theirs, ours in _FIELDS.items() if spec.get(theirs)}
    given |= {ours: _as_file(str(spec[theirs])) for theirs, ours in _INLINE.items() if spec.get(theirs)}
    return DatastoreSettings(endpoints=_endpoints(spec), source=name, **given)


def _as_file(text: str) -> str:
    """A certificate or key as a file of its own, which only this user can read and which goes when the program ends."""
    descriptor, path = tempfile.mkstemp(prefix="calicoctl-", suffix=".pem")
    atexit.register(Path(path).unlink, missing_ok=True)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _check_form(document: Mapping[str, Any], name: str) -> None:
    form = (document.get("apiVersion"), document.get("kind"))
    if form not in _FORMS:
        raise InvalidInput(
            f"{name}: apiVersion and kind",
            f"{form[0]} {form[1]}",
            f"must be apiVersion: {API_VERSION}, kind: CalicoAPIConfig",
        )
    spec = document.get("spec") or {}
    if not isinstance(spec, dict):
        raise InvalidInput(f"{name}: spec", spec, "must be a map of members")
    kind = spec.get("datastoreType", "")
    if kind not in ("", "etcdv3"):
        raise InvalidInput(f"{name}: spec.datastoreType", kind, "only etcdv3 is offered here")


def _endpoints(spec: Mapping[str, Any]) -> tuple[str, ...]:
    endpoints = tuple(part.strip() for part in str(spec.get("etcdEndpoints") or "").split(",") if part.strip())
    if not endpoints and spec.get("etcdAuthority"):
        return (f"{spec.get('etcdScheme') or 'http'}://{spec['etcdAuthority']}",)
    return endpoints or (DEFAULT_ENDPOINT,)
