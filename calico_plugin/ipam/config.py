"""IPAM's configuration in the datastore: read with Calico's defaults, changed under Calico's rules (datamodel 4.2)."""

from __future__ import annotations

import msgspec

from calico_plugin.datastore.kv import KV
from calico_plugin.deadline import Deadline
from calico_plugin.errors import InvalidInput
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import DEFAULT_IPAM_CONFIG, IPAMConfig

MAX_COOLDOWN_SECONDS = 1200


def get_config(kv: KV, deadline: Deadline) -> IPAMConfig:
    """What is stored, or the defaults. Raises CorruptValue."""
    item = kv.get(keys.IPAM_CONFIG, deadline)
    return codec.decode(IPAMConfig, item.key, item.value) if item else DEFAULT_IPAM_CONFIG


def set_config(kv: KV, wanted: IPAMConfig, deadline: Deadline) -> IPAMConfig:
    """Store a configuration; what equals the present one is not written. Raises InvalidInput, and Conflict when
    another writes it too.
    """
    check_config(wanted)
    item = kv.get(keys.IPAM_CONFIG, deadline)
    document = msgspec.json.decode(item.value) if item else None
    if (codec.decode(IPAMConfig, item.key, item.value) if item else DEFAULT_IPAM_CONFIG) == wanted:
        return wanted
    data = codec.encode(wanted, document)
    if item:
        kv.replace(keys.IPAM_CONFIG, data, item.revision, deadline)
    else:
        kv.create(keys.IPAM_CONFIG, data, deadline)
    return wanted


def check_config(config: IPAMConfig) -> None:
    """Raises InvalidInput for combinations that the original refuses."""
    if not config.strict_affinity and not config.auto_allocate_blocks:
        raise InvalidInput("auto_allocate_blocks", False, "needs strict affinity: without both nothing could be given")
    if config.max_blocks_per_host < 0:
        raise InvalidInput("maxBlocksPerHost", config.max_blocks_per_host, "0 (no limit of its own) or more")
    if config.max_blocks_per_host > 0 and not config.strict_affinity:
        raise InvalidInput("maxBlocksPerHost", config.max_blocks_per_host, "needs strict affinity")
    if not 0 <= config.ip_cooldown_seconds <= MAX_COOLDOWN_SECONDS:
        raise InvalidInput("ipCooldownSeconds", config.ip_cooldown_seconds, f"0 to {MAX_COOLDOWN_SECONDS}")
