"""`calicoctl node checksystem` and `node diags`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from calico_plugin.cli.node.common import NodeError, need_root
from calico_plugin.config import Settings
from calico_plugin.node import checks, diags


@click.command()
@click.option("-f", "--kernel-config", type=click.Path(path_type=Path), help="Configuration of the kernel.")
def checksystem(kernel_config: Path | None) -> None:
    """Check whether this host can run Calico."""
    need_root()
    release = checks.release()
    failures = []
    for heading, group in (
        ("Checking kernel version...", [checks.kernel_version(release)]),
        ("Checking kernel modules...", checks.modules(release, kernel_config)),
        ("Checking programs and settings...", checks.host()),
    ):
        click.echo(heading)
        for check in group:
            click.echo(str(check))
            if check.result == checks.FAIL:
                failures.append(check)
    if failures:
        lines = "\n".join(f"{check.item}: {check.advice}" for check in failures)
        raise NodeError(f"System doesn't meet one or more minimum systems requirements to run Calico:\n{lines}")
    click.echo("System meets minimum system requirements to run Calico!")


@click.command("diags")
@click.option("--log-dir", help="Folder of the logs (default: /var/log/calico).")
def collect_diags(log_dir: str | None) -> None:
    """Collect routes, rules, BIRD's state and logs of this host in one archive."""
    need_root()
    environment = {**os.environ, **({"CALICO_LOG_DIR": log_dir} if log_dir else {})}
    click.echo(f"Diags saved to {diags.collect(Settings.from_env(environment), click.echo)}")
