"""`calicoctl node run`: starts a process in the background, or with an image (--node-image, CALICO_NODE_IMAGE) a
container.
"""

from __future__ import annotations

import os
import shlex
import socket
from typing import Any, Mapping

import click
import structlog

from calico_plugin.cli.node.common import NodeError, need_root, warn
from calico_plugin.cli.session import Session, common, session_of
from calico_plugin.config import DatastoreSettings, Settings, variables
from calico_plugin.errors import CalicoError, InvalidInput
from calico_plugin.model import autodetect
from calico_plugin.node import container, detached, hostprep, startup
from calico_plugin.node.detached import Contained, Outcome, State
from calico_plugin.node.interfaces import read_interfaces, source_towards
from calico_plugin.node.services import STARTED
from calico_plugin.node.startup import HostView
from calico_plugin.observe import log as logging

_WAIT_SECONDS = 75.0
_SHOWN_LINES = 25
_OPTIONS = {
    "name": "NODENAME",
    "ip": "IP",
    "ip6": "IP6",
    "as_number": "AS",
    "ip_autodetection_method": "IP_AUTODETECTION_METHOD",
    "ip6_autodetection_method": "IP6_AUTODETECTION_METHOD",
    "backend": "CALICO_NETWORKING_BACKEND",
    "log_dir": "CALICO_LOG_DIR",
    "docker_networking_ifprefix": "CALICO_LIBNETWORK_IFPREFIX",
}


# Flags of earlier calicoctl: None is accepted and changes nothing, a text says what to do instead.
_HISTORIC = {
    "libnetwork": None,
    "no-pull": None,
    "libnetwork-image": "the network driver is part of calico-node's own image; give --node-image",
    "felix-config": "the agent reads no file; use `calicoctl apply` with a FelixConfiguration, or FELIX_… variables",
    "detach": "calico-node is started in the background; --init-system runs it in the foreground",
    "rkt": "Docker is the only engine here",
    "runtime": "Docker is the only engine here",
}


def _refuse(context: click.Context, option: click.Parameter, value: Any) -> None:
    name = (option.name or "").replace("_", "-")
    if value and (hint := _HISTORIC[name]):
        raise InvalidInput(f"--{name}", hint=hint)


def _historic(function: Any) -> Any:
    for name, hint in _HISTORIC.items():
        flag = hint is None or name == "rkt"
        function = click.option(f"--{name}", hidden=True, is_flag=flag, expose_value=False, callback=_refuse)(function)
    return function


@click.command()
@click.option("--name", help="The node's name (default: that of the last start, else the host name in lower case).")
@click.option("--ip", help="IPv4 address of this host, with or without prefix length, or autodetect.")
@click.option("--ip6", help="IPv6 address of this host, or autodetect (default: no IPv6 routing).")
@click.option("--as", "as_number", help="AS number of this node (default: the cluster's).")
@click.option("--ip-autodetection-method", help=f"How to find the IPv4 address: {autodetect.KNOWN}.")
@click.option("--ip6-autodetection-method", help="How to find the IPv6 address.")
@click.option("--backend", help="bird, vxlan (no BGP: pools must use VXLAN), or none (policy only). Default: bird.")
@click.option("--log-dir", help="Folder of the logs (default: /var/log/calico).")
@click.option("--no-default-ippools", is_flag=True, help="Do not make the default address pools.")
@click.option("--disable-docker-networking", is_flag=True, help="Do not run the Docker network driver.")
@click.option("--docker-networking-ifprefix", help="Prefix of interface names inside containers (default: cali).")
@click.option(
    "--use-docker-networking-container-labels",
    is_flag=True,
    help="Policy by container labels (org.projectcalico.label.*) instead of one profile for each network.",
)
@click.option("--dryrun", "--dry-run", "dry_run", is_flag=True, help="Only show what would be started.")
@click.option("--init-system", is_flag=True, help="Run in the foreground, for a unit of an init system.")
@click.option("--wait", default=_WAIT_SECONDS, show_default=True, help="Seconds to wait for the start line.")
@click.option(
    "--node-image",
    envvar="CALICO_NODE_IMAGE",
    help="Run a container of this image, such as calico/node, instead of a process of this host.",
)
@_historic
@common
@click.pass_context
def run(context: click.Context, dry_run: bool, init_system: bool, wait: float, **given: Any) -> None:
    """Start Calico on this host in the background; one that runs already is ended first, and traffic goes on.

    Settings that have no option come from the environment: ETCD_ENDPOINTS, CALICO_IPV4POOL_CIDR and others.
    """
    session = session_of(context, given)
    if not structlog.is_configured():
        logging.setup("calicoctl", "none")  # calico-node's own log has it all
    image = given.pop("node_image")
    changes = _changes(session, given)
    environment = {**os.environ, **changes}
    settings = Settings.checked(environment)
    _check_reachable(settings)
    plan = _plan(image, environment, settings, session, init_system) if image else None
    if dry_run:
        _show_container(plan) if plan else _show(changes)
        return
    need_root()
    if not os.environ.get("CALICO_CTL_CONTAINER"):
        hostprep.prepare(settings.lib_dir, click.echo, warn)
    if detached.running(settings.run_dir):
        _check_before_stop(session, settings)
    _end_running(settings)
    if plan:
        _run_container(plan, wait)
        return
    if init_system:
        os.execvpe(detached.command()[0], detached.command(), environment)
    click.echo(f"Running: {_line(changes)}")
    _tell(detached.start({**environment, "CALICO_FORWARD_LOGS": "false"}, settings.log_dir, wait), wait)


def _end_running(settings: Settings) -> None:
    """End the calico-node that runs here, whatever its form. Raises Contained for a managed plugin."""
    try:
        pid = detached.stop(settings.run_dir)
    except Contained as error:
        if error.managed:
            raise
        click.echo("Removing the calico-node container that was running")
        container.remove()
        return
    if pid is not None:
        click.echo(f"Ended the calico-node that was running (process {pid or 'gone, its parts were left'})")


def _plan(
    image: str, environment: Mapping[str, str], settings: Settings, session: Session, init_system: bool
) -> container.Plan:
    inside = {**environment, "NODENAME": settings.node_name}
    if not environment.get("CALICO_LIBNETWORK_SCOPE") and container.cluster_store():
        inside["CALICO_LIBNETWORK_SCOPE"] = "global"
    log_dir = str(settings.log_dir)
    secrets_dir = str(settings.secrets_dir) if settings.secrets_dir.is_dir() else ""
    return container.plan(image, inside, variables(), session.settings, log_dir, init_system, secrets_dir)


def _show_container(plan: container.Plan) -> None:
    click.echo(f"Use the following command to start the calico-node container:\n\n{plan.line()}\n")
    if plan.foreground:
        click.echo(f"Use the following command to stop the calico-node container:\n\ndocker stop {container.NAME}\n")
    else:
        click.echo("If an init system shall start it, use --init-system: then it runs in the foreground\n")


def _run_container(plan: container.Plan, wait: float) -> None:
    container.remove()
    click.echo(f"Running the following command to start calico-node:\n\n{plan.line()}\n")
    if plan.foreground:
        container.become(plan)
    click.echo("Image may take a short time to download if it is not available locally.")
    container.start(plan)
    click.echo("Container started, checking progress logs.")
    state, lines = container.follow(wait)
    if state is State.STARTED:
        click.echo(STARTED)
        return
    for line in lines[-_SHOWN_LINES:]:
        click.echo(line, err=True)
    if state is State.STARTING:
        raise NodeError(
            f"calico-node is still starting after {wait:g} s: it goes on in the background. Follow it with "
            f"`docker logs -f {container.NAME}`, end it with `docker rm -f {container.NAME}`"
        )
    raise NodeError(
        f"calico-node has terminated; the end of its log is above, the whole in `docker logs {container.NAME}`. Docker "
        f"goes on starting it; `docker rm -f {container.NAME}` ends that"
    )


def _changes(session: Session, given: Mapping[str, Any]) -> dict[str, str]:
    """What the options and the connection settings add to the environment."""
    changes = _datastore(session.settings)
    changes.update((variable, given[option]) for option, variable in _OPTIONS.items() if given[option])
    if given["no_default_ippools"]:
        changes["NO_DEFAULT_POOLS"] = "true"
    if given["disable_docker_networking"]:
        if given["use_docker_networking_container_labels"]:
            hint = "makes no sense together with --disable-docker-networking"
            raise InvalidInput("--use-docker-networking-container-labels", hint=hint)
        changes["CALICO_LIBNETWORK_ENABLED"] = "false"
    if given["use_docker_networking_container_labels"]:
        changes["CALICO_LIBNETWORK_CREATE_PROFILES"] = "false"
        changes["CALICO_LIBNETWORK_LABEL_ENDPOINTS"] = "true"
    return changes


def _datastore(settings: DatastoreSettings) -> dict[str, str]:
    """Connection settings from a file, as variables; those of the environment are there already."""
    if settings.is_default or "environment" in settings.source:
        return {}
    return {
        "CALICO_ETCD_ENDPOINTS": ",".join(settings.endpoints),
        "CALICO_ETCD_CA_CERT_FILE": settings.ca_cert_file,
        "CALICO_ETCD_CERT_FILE": settings.cert_file,
        "CALICO_ETCD_KEY_FILE": settings.key_file,
        "CALICO_ETCD_USERNAME": settings.username,
        "CALICO_ETCD_PASSWORD": settings.password,
    }


def _check_before_stop(session: Session, settings: Settings) -> None:
    """A working calico-node is not ended for one that could not start."""
    if settings.node.wait_for_datastore:
        return
    try:
        startup.preflight(settings, session.store, HostView(read_interfaces(), source_towards))
    except CalicoError as error:
        raise NodeError(f"{error}\nThe calico-node that is running was left alone") from error


def _check_reachable(settings: Settings) -> None:
    """A can-reach target must have an address of the right family, now and on this host."""
    for option, method, family in (
        ("--ip-autodetection-method", settings.node.ip_method, socket.AF_INET),
        ("--ip6-autodetection-method", settings.node.ip6_method, socket.AF_INET6),
    ):
        if method.kind == autodetect.CAN_REACH:
            try:
                socket.getaddrinfo(method.values[0], 80, family)
            except OSError as error:
                version = 4 if family == socket.AF_INET else 6
                raise InvalidInput(option, str(method), f"no IPv{version} address of it: {error.strerror}") from error


def _line(changes: Mapping[str, str]) -> str:
    shown = {name: "********" if "PASSWORD" in name else value for name, value in sorted(changes.items()) if value}
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in shown.items()), *detached.command()])


def _show(changes: Mapping[str, str]) -> None:
    click.echo(f"Use the following command to start calico-node:\n\n{_line(changes)}\n")
    click.echo("Use the following command to stop it:\n\ncalicoctl node stop\n")


def _tell(outcome: Outcome, wait: float) -> None:
    """Three ends are told apart: started, exited, still starting."""
    if outcome.state is State.STARTED:
        for line in outcome.lines:
            if "level=warning" in line:
                warn(_event(line))
        click.echo(f"{STARTED}\nLogs: {outcome.log.parent}")
        return
    for line in outcome.lines[-_SHOWN_LINES:]:
        click.echo(line, err=True)
    if outcome.state is State.STARTING:
        raise NodeError(
            f"calico-node is still starting after {wait:g} s: it goes on in the background. Follow it with "
            f"`tail -f {outcome.log}`, end it with `calicoctl node stop`"
        )
    raise NodeError(
        f"calico-node has terminated (status {outcome.status}); the end of its log is above, the whole in {outcome.log}"
    )


def _event(line: str) -> str:
    """The text of a log line."""
    _, found, rest = line.partition('event="')
    return rest.rpartition('"')[0] if found else line
