"""`calicoctl cluster`: known to the original for Kubernetes; refused here with what to use instead."""

from __future__ import annotations

from typing import Any

import click

from calico_plugin.errors import CalicoError


class NotHere(CalicoError):
    """A command that makes no sense on plain Docker hosts."""


@click.group()
def cluster() -> None:
    """The cluster as a whole."""


@cluster.command()
@click.option("-c", "--config", hidden=True)
@click.option("--since", default="0s", hidden=True)
@click.option("--max-logs", type=int, default=5, hidden=True)
@click.option("--max-parallelism", type=int, default=10, hidden=True)
@click.option("--focus-nodes", default="", hidden=True)
@click.option("--skip-temp-dir-cleanup", is_flag=True, hidden=True)
def diags(**given: Any) -> None:
    """Not available on plain Docker hosts: it collects from Kubernetes. Use `calicoctl node diags` on each host."""
    raise NotHere(
        "cluster diags is not available on this platform: it needs Kubernetes. Run `calicoctl node diags` on each "
        "host, and `calicoctl doctor` for what is wrong"
    )
