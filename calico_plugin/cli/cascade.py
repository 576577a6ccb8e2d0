"""What goes with a deleted object (datamodel 2.3): placeholders until the release functions of IPAM are here."""

from __future__ import annotations

from calico_plugin.cli.session import Session
from calico_plugin.model.resources import Resource


def delete(session: Session, resource: Resource) -> None:
    """Delete one object and what depends on it."""
    revision = int(resource.metadata.resource_version) if resource.metadata.resource_version.isdigit() else None
    session.resources.delete(resource.kind, resource.name, session.deadline(), resource.namespace, revision)
