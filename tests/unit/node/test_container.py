"""The command of the container form, and its copies in deploy/."""

from __future__ import annotations

import re
from pathlib import Path

import click.testing
import pytest
import yaml

from calico_plugin.cli.main import root
from calico_plugin.config import DatastoreSettings, variables
from calico_plugin.node import container

DEPLOY = Path(__file__).parents[3] / "deploy"
ETCD = DatastoreSettings(("http://10.0.0.1:2379", "http://10.0.0.2:2379"), source="ETCD_ENDPOINTS in the environment")
MOUNTS = [
    "/var/log/calico", "/var/run/calico", "/var/lib/calico", "/lib/modules", "/run", "/run/docker/plugins",
    "/var/run/docker.sock",
]  # fmt: skip


def plan(
    environ: dict[str, str] | None = None, datastore: DatastoreSettings = ETCD, foreground: bool = False
) -> container.Plan:
    given = {"NODENAME": "host1", **(environ or {})}
    return container.plan("calico/node:latest", given, variables(), datastore, "/var/log/calico", foreground)


def test_command_in_the_original_s_order() -> None:
    """Host network, privileges, name, restart; then the environment, sorted; then the mounts; then the image."""
    words = plan({"AS": "64513"}).command()
    assert words[:7] == "docker run --net=host --privileged --name=calico-node -d --restart=always".split()
    environment = [words[place + 1] for place, word in enumerate(words) if word == "-e"]
    assert environment == [
        "AS=64513",
        "CALICO_LIBNETWORK_ENABLED=true",
        "CALICO_MANAGE_CNI=false",
        "CALICO_NETWORKING_BACKEND=bird",
        "ETCD_ENDPOINTS=http://10.0.0.1:2379,http://10.0.0.2:2379",
        "NODENAME=host1",
    ]
    assert [words[place + 1] for place, word in enumerate(words) if word == "-v"] == [f"{one}:{one}" for one in MOUNTS]
    assert words[-1] == "calico/node:latest"


def test_init_system() -> None:
    """In the foreground, removed at its end."""
    assert plan(foreground=True).command()[5] == "--rm"


def test_without_docker_networking() -> None:
    """No plugin folder."""
    words = plan({"CALICO_LIBNETWORK_ENABLED": "false"}).command()
    assert "CALICO_LIBNETWORK_ENABLED=false" in words and "/run/docker/plugins:/run/docker/plugins" not in words


def test_paths_of_the_host_stay_out() -> None:
    """Where things are is the image's business, and etcd's variables are made from the connection settings."""
    given = {"CALICO_RUN_DIR": "/x", "CALICO_LOG_DIR": "/x", "DOCKER_HOST": "unix:///x", "CALICO_ETCD_ENDPOINTS": "/x"}
    assert not [word for word in plan(given).command() if word.endswith("/x")]


def test_no_endpoints_given() -> None:
    """Empty, which calico-node takes for none: it may start an etcd of its own."""
    assert "ETCD_ENDPOINTS=" in plan(datastore=DatastoreSettings()).command()


def test_certificates_are_mounted(tmp_path: Path) -> None:
    """Each where its variable says."""
    for name in ("ca.pem", "c.pem", "k.pem"):
        (tmp_path / name).touch()
    datastore = DatastoreSettings(
        ("https://10.0.0.1:2379",), str(tmp_path / "ca.pem"), str(tmp_path / "c.pem"), str(tmp_path / "k.pem")
    )
    words = plan(datastore=datastore).command()
    for variable, file, inside in (
        ("ETCD_CA_CERT_FILE", "ca.pem", "ca_cert.crt"),
        ("ETCD_CERT_FILE", "c.pem", "cert.crt"),
        ("ETCD_KEY_FILE", "k.pem", "key.pem"),
    ):
        assert f"{variable}=/etc/calico/certs/{inside}" in words
        assert f"{tmp_path / file}:/etc/calico/certs/{inside}" in words


def test_secrets_of_bgp_are_mounted() -> None:
    """Where the agent looks for them inside, wherever they are on the host."""
    words = container.plan("x", {}, variables(), ETCD, "/var/log/calico", False, "/srv/secrets").command()
    assert "/srv/secrets:/etc/calico/secrets" in words and "/etc/calico/secrets" not in " ".join(plan().command())


def test_the_password_is_in_no_process_list() -> None:
    """Named only; Docker's client has it from its environment."""
    words = plan(datastore=DatastoreSettings(username="root", password="secret")).command()
    assert "ETCD_PASSWORD" in words and "secret" not in " ".join(words)


def test_dry_run() -> None:
    """Needs neither root nor Docker; the command stands on one line between blank ones."""
    said = click.testing.CliRunner().invoke(root, ["node", "run", "--node-image=x/y:1", "--dryrun", "--name=host1"])
    assert said.exit_code == 0, said.output
    heading, blank, line, after, *_ = said.output.splitlines()
    assert heading and not blank and not after
    assert line.startswith("docker run --net=host") and line.endswith(" x/y:1")


@pytest.mark.parametrize("words", [["--libnetwork-image=x"], ["--felix-config=/x"], ["--rkt"], ["--runtime=rkt"]])
def test_flags_of_the_past_are_refused_by_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With what to do instead."""
    said = click.testing.CliRunner().invoke(root, ["node", "run", "--dryrun", *words])
    assert said.exit_code != 0
    assert words[0].partition("=")[0] in said.output + str(said.exception)


@pytest.mark.parametrize("words", [["--libnetwork"], ["--no-pull"]])
def test_flags_of_the_past_that_change_nothing(words: list[str]) -> None:
    """Accepted."""
    run = ["node", "run", "--node-image=x", "--dryrun", "--name=host1"]
    plain, with_flag = (click.testing.CliRunner().invoke(root, one).output for one in (run, [*run, *words]))
    assert plain == with_flag


def test_compose_file() -> None:
    """The same mounts and the same way of running as `node run`; settings that exist."""
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["calico-node"]
    assert service["volumes"] == ["/etc/calico:/etc/calico:ro", *(f"{one}:{one}" for one in MOUNTS)]
    assert (service["network_mode"], service["privileged"], service["restart"]) == ("host", True, "always")
    assert service["container_name"] == container.NAME
    assert set(service["environment"]) <= set(variables())


def test_units() -> None:
    """The container's unit has the mounts of `node run`, and /etc/calico for certificates; settings that exist."""
    text = (DEPLOY / "calico-node-container.service").read_text()
    assert re.findall(r"-v (\S+)", text) == ["/etc/calico:/etc/calico:ro", *(f"{one}:{one}" for one in MOUNTS)]
    assert "ExecStartPre=-/usr/bin/docker rm -f calico-node" in text
    names = set(re.findall(r"^#?([A-Z_0-9]+)=", (DEPLOY / "calico.env").read_text(), re.MULTILINE))
    assert names and names <= set(variables())
    assert "Before=docker.service" in (DEPLOY / "calico-node.service").read_text()
