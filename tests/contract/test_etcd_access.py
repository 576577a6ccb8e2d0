"""TLS and users on a real etcd: who gets in, who does not, and what they read then."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Iterator

import pytest
from etcd3.etcdrpc import (
    AuthEnableRequest,
    AuthRoleAddRequest,
    AuthRoleGrantPermissionRequest,
    AuthStub,
    AuthUserAddRequest,
    AuthUserGrantRoleRequest,
)
from etcd3.etcdrpc.auth_pb2 import Permission

from calico_plugin.datastore.etcd import EtcdKV, connect
from calico_plugin.deadline import Deadline
from calico_plugin.errors import DatastoreUnauthorized, DatastoreUnavailable, InvalidInput
from tests.etcd_server import Cluster, etcd_cluster, wait_ready
from tests.follower import Follower

TOKEN_SECONDS = 1


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An etcd with authentication on: root, and `calico` who may touch /calico/ only. Tokens live a second."""
    options = [f"--auth-token-ttl={TOKEN_SECONDS}", "--bcrypt-cost=4"]
    with etcd_cluster(tmp_path_factory.mktemp("auth"), options=options) as cluster:
        client = connect(cluster.endpoints)
        auth = AuthStub(client._transport.member().channel)
        auth.RoleAdd(AuthRoleAddRequest(name="root"))
        auth.RoleAdd(AuthRoleAddRequest(name="calico"))
        own_keys = Permission(permType=Permission.READWRITE, key=b"/calico/", range_end=b"/calico0")
        auth.RoleGrantPermission(AuthRoleGrantPermissionRequest(name="calico", perm=own_keys))
        for user in ("root", "calico"):
            auth.UserAdd(AuthUserAddRequest(name=user, password=f"{user}-secret"))
            auth.UserGrantRole(AuthUserGrantRoleRequest(user=user, role=user))
        auth.AuthEnable(AuthEnableRequest())
        client.close()
        yield cluster


def as_calico(cluster: Cluster, password: str = "calico-secret") -> EtcdKV:
    return connect(cluster.endpoints, username="calico", password=password, source="the tests")


@pytest.fixture
def calico(guarded: Cluster) -> Iterator[EtcdKV]:
    client = as_calico(guarded)
    client.delete_prefix("/calico/", Deadline(20))
    yield client
    client.close()


def test_user_with_password(calico: EtcdKV) -> None:
    """The right user reads, writes and watches its own keys."""
    revision = calico.create("/calico/a", b"1", Deadline(20))
    stream = calico.watch("/calico/", revision)
    (change,) = next(batch for batch in stream if batch)
    stream.close()
    assert change.key == "/calico/a"


def test_keys_of_others(calico: EtcdKV) -> None:
    """What the user's role does not cover is refused, in a call as in a watch."""
    with pytest.raises(DatastoreUnauthorized, match="permission denied"):
        calico.get("/elsewhere", Deadline(20))
    with pytest.raises(DatastoreUnauthorized, match="etcd"):
        list(calico.watch("/elsewhere/", 1))


@pytest.mark.parametrize("password", ["wrong", "calico-secret "])
def test_wrong_password(guarded: Cluster, password: str) -> None:
    """The error says that etcd refuses, and which settings to look at, and does not show the password."""
    client = as_calico(guarded, password)
    with pytest.raises(DatastoreUnauthorized, match="ETCD_USERNAME") as caught:
        client.get("/calico/a", Deadline(20))
    client.close()
    assert "etcd" in str(caught.value) and password.strip() not in str(caught.value).replace("ETCD_PASSWORD", "")


def test_no_user(guarded: Cluster) -> None:
    """Without a user an etcd that wants one is refused access, not found unavailable."""
    client = connect(guarded.endpoints)
    with pytest.raises(DatastoreUnauthorized, match="ETCD_USERNAME"):
        client.get("/calico/a", Deadline(20))
    with pytest.raises(DatastoreUnauthorized):
        list(client.watch("/calico/", 1))
    client.close()


def test_token_that_ran_out(calico: EtcdKV) -> None:
    """A token that has expired is renewed unseen, for a call and for a new watch."""
    revision = calico.create("/calico/a", b"1", Deadline(20))
    first = calico._transport._token
    # Nothing tells when etcd forgets a token; it looks once a second.
    time.sleep(TOKEN_SECONDS + 2)
    item = calico.get("/calico/a", Deadline(20))
    assert item is not None and calico._transport._token != first
    time.sleep(TOKEN_SECONDS + 2)
    follower = Follower(calico, ("/calico/",)).start()
    follower.wait_in_sync(Deadline(20))
    follower.close()
    stream = calico.watch("/calico/", revision)
    assert next(batch for batch in stream if batch)[0].key == "/calico/a"
    stream.close()


def test_watch_with_an_old_token(guarded: Cluster, calico: EtcdKV) -> None:
    """A stream opened with a token that etcd has forgotten logs in again unseen."""
    revision = calico.create("/calico/a", b"1", Deadline(20))
    time.sleep(TOKEN_SECONDS + 2)
    stream = calico.watch("/calico/", revision)
    assert next(batch for batch in stream if batch)[0].key == "/calico/a"
    stream.close()


def test_token_of_a_restarted_member(guarded: Cluster, calico: EtcdKV) -> None:
    """Tokens live in the member's memory: one that was restarted knows none, and nobody notices."""
    calico.create("/calico/a", b"1", Deadline(20))
    guarded.members[0].kill()
    guarded.restart(guarded.members[0])
    item = calico.get("/calico/a", Deadline(20))
    assert item is not None and item.value == b"1"


def test_watch_of_a_restarted_member(guarded: Cluster, calico: EtcdKV) -> None:
    """A watch that loses its stream together with its token comes back by itself."""
    follower = Follower(calico, ("/calico/",)).start()
    try:
        follower.wait_in_sync(Deadline(20))
        guarded.members[0].kill()
        guarded.restart(guarded.members[0])
        other = as_calico(guarded)
        other.put("/calico/late", b"1", Deadline(30))
        other.close()
        follower.wait_for(lambda f: f.get("/calico/late"), Deadline(30), "the write")
    finally:
        follower.close()


def test_user_for_an_etcd_that_wants_none(etcd: str) -> None:
    """A user is no harm where authentication is off."""
    client = connect([etcd], username="calico", password="x")
    client.put("/calico/a", b"1", Deadline(20))
    client.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, server.pem/.key for 127.0.0.1, client.pem/.key, and a CA of somebody else (other.pem)."""
    base = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=base, check=True, capture_output=True)

    for authority in ("ca", "other"):
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN={authority}", "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
        )  # fmt: skip
    for name in ("server", "client"):
        (base / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem",
        )  # fmt: skip
    shutil.copy(base / "other.pem", base / "stranger.pem")  # a certificate that the server's CA has not signed
    return base


@pytest.fixture(scope="module")
def secure(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An etcd that speaks TLS only and wants a client certificate."""
    options = [
        f"--cert-file={certificates}/server.pem",
        f"--key-file={certificates}/server.key",
        f"--trusted-ca-file={certificates}/ca.pem",
        "--client-cert-auth",
    ]
    cluster = Cluster(tmp_path_factory.mktemp("secure"), 1, options, scheme="https")
    try:
        cluster.start()
        wait_ready(cluster.endpoints, **files(certificates))
        yield cluster
    finally:
        cluster.kill()


def files(certificates: Path, **changed: str) -> dict[str, str]:
    """The three TLS settings of a client."""
    names = {"ca_cert_file": "ca.pem", "cert_file": "client.pem", "key_file": "client.key"} | changed
    return {setting: str(certificates / name) for setting, name in names.items() if name}


def test_client_certificate(secure: Cluster, certificates: Path) -> None:
    """Calls and watches go through TLS with a client certificate."""
    client = connect(secure.endpoints, **files(certificates))
    revision = client.put("/t/a", b"1", Deadline(20))
    stream = client.watch("/t/", revision)
    assert next(batch for batch in stream if batch)[0].key == "/t/a"
    stream.close()
    client.close()


@pytest.mark.parametrize(
    ("changed", "setting"),
    [({"ca_cert_file": "other.pem"}, "ETCD_CA_CERT_FILE"), ({"cert_file": "", "key_file": ""}, "ETCD_CERT_FILE")],
)
def test_certificate_that_does_not_fit(
    secure: Cluster, certificates: Path, changed: dict[str, str], setting: str
) -> None:
    """A server of another CA, or no client certificate: an error in time that names etcd, endpoint and setting."""
    client = connect(secure.endpoints, **files(certificates, **changed), source="ETCD_ENDPOINTS in the environment")
    with pytest.raises((DatastoreUnavailable, DatastoreUnauthorized)) as caught:
        client.get("/t/a", Deadline(2))
    client.close()
    text = str(caught.value)
    assert [word for word in ("etcd", secure.endpoints[0], setting) if word not in text] == [], text


@pytest.mark.parametrize("wrong", [{"ca.pem": "other.pem"}, {"client.pem": "stranger.pem", "client.key": "other.key"}])
def test_renewed_files_are_used(
    secure: Cluster, certificates: Path, tmp_path: Path, wrong: dict[str, str]
) -> None:
    """A client that runs goes on with certificates that are put in place of those that do not fit (any more)."""
    for name in ("ca.pem", "client.pem", "client.key"):
        shutil.copy(certificates / wrong.get(name, name), tmp_path / name)
    client = connect(secure.endpoints, **files(tmp_path))
    with pytest.raises((DatastoreUnavailable, DatastoreUnauthorized)):
        client.get("/t/a", Deadline(1))
    for name in wrong:
        shutil.copy(certificates / name, tmp_path / name)
    client.put("/t/renewed", b"1", Deadline(10))
    client.close()


def test_plain_text_to_a_tls_port(secure: Cluster) -> None:
    """http:// where https:// is right fails in time, with that guess."""
    client = connect([secure.endpoints[0].replace("https", "http")])
    with pytest.raises(DatastoreUnavailable, match="want https://"):
        client.get("/t/a", Deadline(2))
    client.close()


def test_tls_to_a_plain_port(etcd: str, certificates: Path) -> None:
    """https:// where http:// is right fails in time, with that guess."""
    client = connect([etcd.replace("http", "https")], **files(certificates))
    with pytest.raises(DatastoreUnavailable, match="speak plain http://"):
        client.get("/t/a", Deadline(2))
    client.close()


def test_files_are_checked_before_use(tmp_path: Path, certificates: Path) -> None:
    """A TLS file that is missing, no PEM, or without its partner is named by its setting."""
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("hello")
    for settings, name in (
        ({"ca_cert_file": str(tmp_path / "none")}, "ETCD_CA_CERT_FILE"),
        ({"ca_cert_file": str(nonsense)}, "ETCD_CA_CERT_FILE"),
        ({"cert_file": str(certificates / "client.pem")}, "ETCD_KEY_FILE"),
        ({"cert_file": str(certificates / "client.pem"), "key_file": str(tmp_path)}, "ETCD_KEY_FILE"),
        ({"password": "x"}, "ETCD_USERNAME"),
    ):
        with pytest.raises(InvalidInput) as caught:
            connect(["https://127.0.0.1:1"], **settings)
        assert caught.value.field == name
