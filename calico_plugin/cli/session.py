"""What every command works with: the datastore, made when it is first needed, and a deadline for each operation."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, TypeVar

import click

from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError

if TYPE_CHECKING:
    from calico_plugin.config import DatastoreSettings
    from calico_plugin.datastore.kv import KV
    from calico_plugin.datastore.resources import ResourceClient
    from calico_plugin.datastore.store import Store
    from calico_plugin.ipam import Allocator

SECONDS = 15.0
Command = TypeVar("Command", bound=Callable[..., Any])


class VersionMismatch(CalicoError):
    """The cluster is run by another version of Calico."""


class Session:
    """One run of calicoctl."""

    def __init__(self, config: Path | None, allow_version_mismatch: bool) -> None:
        self.config = config
        self.allow_version_mismatch = allow_version_mismatch
        self.dry_run = False

    def deadline(self) -> Deadline:
        return Deadline(SECONDS)

    @cached_property
    def settings(self) -> DatastoreSettings:
        from calico_plugin.cli import settings

        chosen = settings.load(self.config, os.environ)
        warning = settings.overruled(chosen, os.environ)
        if warning:
            click.echo(warning, err=True)
        return chosen

    @cached_property
    def kv(self) -> KV:
        # gRPC takes a tenth of a second to import: only commands that talk to etcd pay it.
        from calico_plugin.datastore.etcd import connect

        chosen = self.settings
        real = connect(**asdict(chosen))
        if not self.dry_run:
            return real
        from calico_plugin.datastore.overlay import OverlayKV

        return OverlayKV(real)

    @cached_property
    def store(self) -> Store:
        from calico_plugin.datastore.store import Store

        return Store(self.kv)

    @cached_property
    def resources(self) -> ResourceClient:
        """The client for resources, after the version check that the original makes."""
        from calico_plugin.cli.checking import check
        from calico_plugin.datastore.resources import ResourceClient

        self._check_version()
        return ResourceClient(self.store, check)

    @cached_property
    def allocator(self) -> Allocator:
        """IPAM, with the policy engine's selector matcher."""
        from calico_plugin.ipam import Allocator
        from calico_plugin.policy import selector

        return Allocator(self.kv, lambda text, labels: selector.parse(text or "all()").match(labels))

    def _check_version(self) -> None:
        """Refuse a cluster of another version; ours leaves its version empty, which skips the check (datamodel 5.4)."""
        if self.allow_version_mismatch:
            return
        from calico_plugin import __version__
        from calico_plugin.model.resources import ClusterInformation

        stored = self.store.resources(ClusterInformation).find("default", self.deadline())
        cluster = stored.value.spec.calico_version if stored else ""
        if cluster and _plain(cluster) != _plain(__version__):
            raise VersionMismatch(
                f"the cluster is run by Calico {cluster}, this calicoctl has version {__version__}: "
                "use the calicoctl of that version, or --allow-version-mismatch"
            )

    def close(self) -> None:
        if "kv" in self.__dict__:
            self.kv.close()


def _plain(version: str) -> str:
    return version.removeprefix("v").partition("-")[0]


def common(command: Command) -> Command:
    """`-c/--config` and the like may stand after the command as well as before it (node-and-cli 4.2)."""
    for option in (
        click.option("-c", "--config", "command_config", type=click.Path(path_type=Path), help="Connection settings."),
        click.option(
            "--context",
            "kubernetes_context",
            hidden=True,
            help="Accepted for compatibility; names a Kubernetes context.",
        ),
        click.option(
            "--allow-version-mismatch", "command_mismatch", is_flag=True, help="Work on a cluster of another version."
        ),
    ):
        command = option(command)
    return command


def dry_run(command: Command) -> Command:
    """`--dry-run` of commands that write: the datastore is read and everything is checked, but nothing is written."""
    return click.option("--dry-run", is_flag=True, help="Check everything and tell what would change; write nothing.")(
        command
    )


def session_of(context: click.Context, given: dict[str, Any]) -> Session:
    """The session of this run, with the options that stood after the command; takes them out of `given`."""
    session: Session = context.find_root().obj
    session.config = given.pop("command_config", None) or session.config
    session.allow_version_mismatch = given.pop("command_mismatch", False) or session.allow_version_mismatch
    session.dry_run = given.pop("dry_run", False)
    given.pop("kubernetes_context", None)
    return session
