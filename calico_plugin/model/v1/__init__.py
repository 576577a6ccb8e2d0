"""Manifests of Calico 1.x and 2.x (`apiVersion: v1`), read and turned into today's resources.

Source: datamodel 6; what the original's converter makes of the same input is in tests/data/golden/convert.json. Bare
names change: see `names.convert`. A policy's name gets its tier in front (`allow-tcp` is `default.allow-tcp`), as the
converter of Calico 3.29 to 3.31 does it.
"""

from calico_plugin.model.v1.convert import Converted, convert, was
from calico_plugin.model.v1.types import KINDS

__all__ = ["Converted", "KINDS", "convert", "was"]
