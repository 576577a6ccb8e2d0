"""All recorded scenarios of Calico's own IPAM client, replayed on a real etcd: addresses, refusals, and the whole
stored state after each step.

Each runs twice: with a new allocator for every step (as `calicoctl` uses it), and with one that remembers (as the
driver does).
"""

from __future__ import annotations

import itertools
import json
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Mapping

import pytest

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.datastore.kv import KeyValue
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, CalicoError, Conflict, NotFound
from calico_plugin.ipam import Allocator, Assigned, DirectView, Release, get_config, set_config
from calico_plugin.model import codec, keys
from calico_plugin.model.ipam import IPAMConfig
from calico_plugin.policy.selector import parse

GOLDEN = json.loads((Path(__file__).parent.parent / "data" / "golden" / "ipam.json").read_text())
SCENARIOS = {scenario["name"]: scenario["steps"] for scenario in GOLDEN["scenarios"]}

# Where a host starts in a pool of so many blocks: one draw of Go's random source. The file lists large pools; the small
# ones are read off the recorded addresses.
STARTS = {(one["host"], int(one["number_of_blocks"])): int(one["start_index"]) for one in GOLDEN["host_order"]}
STARTS.update({("dock-b", 2): 1, ("rack1-h7", 2): 1})

ERRORS: dict[str, type[CalicoError]] = {
    "errors.ErrorResourceDoesNotExist": NotFound,
    "errors.ErrorIPInCooldown": NotFound,
    "errors.ErrorResourceAlreadyExists": AlreadyExists,
    "errors.ErrorResourceUpdateConflict": Conflict,
    "ipam.errBlockNotEmpty": Conflict,
}


def start(host: str, count: int) -> int:
    return STARTS.get((host, count), 0)


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).match(labels)


def deadline() -> Deadline:
    return Deadline(20)


class Replay:
    """Carries out the recorded steps; `remember` keeps one allocator for all of them."""

    def __init__(self, kv: EtcdKV, remember: bool) -> None:
        self.kv, self._remember = kv, remember
        self._one = self._new()

    def _new(self) -> Allocator:
        return Allocator(self.kv, selects, start=start, scan_seconds=0)

    @property
    def ipam(self) -> Allocator:
        return self._one if self._remember else self._new()

    def run(self, operation: str, args: Mapping[str, Any]) -> Any:
        return getattr(self, operation)(**args)

    # Set-up

    def Resource(self, **document: Any) -> None:
        key = keys.resource(document["kind"], document["metadata"]["name"])
        self.kv.put(key, json.dumps(document).encode(), deadline())

    def DeleteResource(self, kind: str, name: str) -> None:
        """What deleting a pool or a node does to IPAM (datamodel 2.3)."""
        item = self.kv.get(keys.resource(kind, name), deadline())
        assert item
        if kind == "IPPool":
            self.ipam.release_pool_affinities(json.loads(item.value)["spec"]["cidr"], deadline())
        else:
            self.ipam.remove_host(name, deadline())
        self.kv.delete(item.key, deadline())

    def PutKey(self, key: str, value: Any) -> None:
        self.kv.put(key, json.dumps(value).encode(), deadline())

    def DeleteKey(self, key: str) -> None:
        self.kv.delete(key, deadline())

    def AgeBlock(self, key: str, seconds: int) -> None:
        item = self.kv.get(key, deadline())
        assert item
        claimed = datetime.now(timezone.utc) - timedelta(seconds=seconds)
        block = {**json.loads(item.value), "affinity_claim_time": claimed.strftime("%Y-%m-%dT%H:%M:%SZ")}
        self.kv.put(key, json.dumps(block).encode(), deadline())

    def EnsureBlock(self, host: str, pools4: Any = None) -> dict[str, Any]:
        """For Windows only: nothing to do where no addresses are kept for the host."""
        return {}

    # The client

    def AutoAssign(
        self, host: str, use: str, num4: int = 0, num6: int = 0, pools4: Any = None, maxBlocksPerHost: int = 0,
        handle: str | None = None, attrs: Any = None,
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        self.limited = False
        for version, count in ((4, num4), (6, num6)):
            if count:
                assigned = self.ipam.auto_assign(
                    host, count, version, use=use, handle=handle, attributes=attrs, max_blocks=maxBlocksPerHost,
                    pools=pools4 if version == 4 else None, partial=True, deadline=deadline(),
                )
                self.limited = self.limited or assigned.limited
                result[f"v{version}"] = _assigned(assigned)
        return result

    def AssignIP(self, host: str, ip: str, use: str, handle: str | None = None, attrs: Any = None) -> None:
        given = self.ipam.assign(ip, host, use=use, handle=handle, attributes=attrs, deadline=deadline())
        assert str(given.ip) == ip

    def ReleaseIPs(self, ips: list[dict[str, str]]) -> dict[str, list[str]]:
        """The original lists as released also the free addresses that lie in a pool."""
        wanted = [Release(_ip(one["address"]), self._sequence(one), one.get("handle")) for one in ips]
        done = self.ipam.release(wanted, deadline())
        pools = DirectView(self.kv).inputs(deadline())
        pooled = [one for one in done.unallocated if pools.pool_of(one.version, int(one))]
        return {
            "released": sorted(map(str, (*done.addresses, *pooled))), "unallocated": sorted(map(str, done.unallocated))
        }

    def _sequence(self, one: dict[str, str]) -> int | None:
        if "sequence" not in one:
            return None
        try:
            stored = self.ipam.attributes_of(one["address"], deadline()).sequence
        except NotFound:
            stored = 4711
        return stored if one["sequence"] == "current" else stored - 1

    def ReleaseByHandle(self, handle: str) -> None:
        self.ipam.release_by_handle(handle, deadline())

    def IPsByHandle(self, handle: str) -> list[str]:
        return sorted(map(str, self.ipam.ips_by_handle(handle, deadline())))

    def GetAssignmentAttributes(self, ip: str) -> dict[str, Any]:
        found = self.ipam.attributes_of(ip, deadline())
        result = {"attrs": dict(found.attributes) or None, "handle": found.handle}
        return {name: value for name, value in result.items() if value is not None}

    def GetIPAMConfig(self) -> dict[str, Any]:
        config = get_config(self.kv, deadline())
        return {
            "autoAllocateBlocks": config.auto_allocate_blocks, "ipCooldownSeconds": config.ip_cooldown_seconds,
            "maxBlocksPerHost": config.max_blocks_per_host, "strictAffinity": config.strict_affinity,
        }

    def SetIPAMConfig(
        self, autoAllocateBlocks: bool, strictAffinity: bool, maxBlocksPerHost: int = 0, ipCooldownSeconds: int = 0
    ) -> None:
        wanted = IPAMConfig(
            strict_affinity=strictAffinity, auto_allocate_blocks=autoAllocateBlocks,
            max_blocks_per_host=maxBlocksPerHost, ip_cooldown_seconds=ipCooldownSeconds,
        )
        set_config(self.kv, wanted, deadline())

    def ClaimAffinity(self, host: str, cidr: str) -> dict[str, list[str]]:
        claims = self.ipam.claim_affinity(host, cidr, deadline())
        return {"claimed": list(map(str, claims.claimed)), "failed": list(map(str, claims.failed))}

    def ReleaseAffinity(self, host: str, cidr: str, mustBeEmpty: bool) -> None:
        self.ipam.release_affinity(host, cidr, deadline(), must_be_empty=mustBeEmpty)

    def ReleaseHostAffinities(self, host: str, mustBeEmpty: bool) -> None:
        self.ipam.release_host_affinities(host, deadline(), must_be_empty=mustBeEmpty)

    def ReleasePoolAffinities(self, cidr: str) -> None:
        self.ipam.release_pool_affinities(cidr, deadline())

    def RemoveIPAMHost(self, host: str) -> None:
        self.ipam.remove_host(host, deadline())

    def GetUtilization(self, pools: list[str]) -> Any:
        uses = [
            {
                "name": use.pool.name if use.pool else "orphaned allocation blocks",
                "cidr": str(use.pool.cidr) if use.pool else "0.0.0.0/0",
                "capacity": use.capacity, "inUse": use.in_use, "reserved": use.reserved, "available": use.available,
                "blocks": [
                    {
                        "cidr": str(one.cidr), "capacity": one.capacity, "inUse": one.in_use,
                        "reserved": one.reserved, "available": one.available,
                    }
                    for one in use.blocks
                ] or None,
            }
            for use in self.ipam.utilisation(deadline(), pools)
        ]
        return uses or None


def _ip(text: str) -> Any:
    from ipaddress import ip_address

    return ip_address(text)


def _assigned(assigned: Assigned) -> dict[str, Any]:
    return {"ips": [str(address) for address in assigned.addresses], "requested": assigned.requested}


class State:
    """What is stored under /calico/ipam/, as recorded and as it is, in a form that can be compared."""

    def __init__(self, kv: EtcdKV) -> None:
        self.kv = kv
        self.recorded: dict[str, Any] = {}
        self.bases: dict[tuple[str, str], int] = {}
        self.put_by_hand: dict[str, Any] = {}

    def record(self, step: Mapping[str, Any]) -> None:
        if step["op"] == "PutKey":
            self.put_by_hand[step["args"]["key"]] = step["args"]["value"]
        self.recorded.update(step.get("put") or {})
        for key in step.get("deleted") or ():
            self.recorded.pop(key, None)

    def check(self) -> None:
        stored = {item.key: item for item in self.kv.list("/calico/ipam/", deadline()).items}
        recorded = {key for key in self.recorded if not self._is_ghost(key)}
        assert set(stored) == recorded
        for key in sorted(recorded):
            self._check_key(key, stored[key])

    def _is_ghost(self, key: str) -> bool:
        """A handle that the original over-counted and so keeps although no address has it (where it miscounts, we are
        right).
        """
        return key.startswith(keys.HANDLES) and not self._true_counts(key[len(keys.HANDLES):])

    def _true_counts(self, handle: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for key, block in self.recorded.items():
            if key.startswith(keys.BLOCKS):
                owners = [block["attributes"][index] for index in block["allocations"] if index is not None]
                held = [owner for owner in owners if owner.get("handle_id") == handle]
                counts.update({block["cidr"]: len(held)} if held else {})
        return counts

    def _check_key(self, key: str, item: KeyValue) -> None:
        ours, theirs = json.loads(item.value), self.recorded[key]
        if key.startswith(keys.HANDLES):
            true = self._true_counts(key[len(keys.HANDLES):])
            assert ours in ({"block": true, "deleted": False}, self.put_by_hand.get(key)), key
        elif key.startswith(keys.BLOCKS):
            self._check_block(key, ours, theirs)
        else:
            assert ours == theirs, key

    def _check_block(self, key: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        for name in ("cidr", "affinity", "allocations", "unallocated", "deleted"):
            assert ours[name] == theirs[name], (key, name)
        assert _attributes(ours) == _attributes(theirs), key
        assert ("affinity_claim_time" in ours) == ("affinity_claim_time" in theirs), key
        if "sequenceNumber" not in ours:
            assert "sequenceNumber" not in theirs, key
            return
        self._check_sequence(key, ours["sequenceNumber"], theirs["sequenceNumber"])
        numbers = theirs["sequenceNumberForAllocation"]
        assert set(ours["sequenceNumberForAllocation"]) == set(numbers), key
        for ordinal, number in numbers.items():
            if not _is_resting(ours, int(ordinal)):
                self._check_sequence(key, ours["sequenceNumberForAllocation"][ordinal], number)

    def _check_sequence(self, key: str, ours: int, theirs: Any) -> None:
        """`T<k>+<n>`: n more than the number with which the key was created for the k-th time."""
        match = re.fullmatch(r"(T\d+)\+(\d+)", str(theirs))
        base, offset = (match[1], int(match[2])) if match else ("T0", int(theirs))
        assert ours - offset == self.bases.setdefault((key, base), ours - offset), (key, ours, theirs)


def _attributes(block: Mapping[str, Any]) -> Any:
    """Null and absent are the same here: older releases write null members."""
    if block["attributes"] is None:
        return None
    return [
        {name: "<time>" if name == "releasedAt" else value for name, value in one.items() if value is not None}
        for one in block["attributes"]
    ]


def _is_resting(block: Mapping[str, Any], ordinal: int) -> bool:
    index = block["allocations"][ordinal]
    return index is not None and "releasedAt" in block["attributes"][index]


def check_answer(step: Mapping[str, Any], call: Callable[[], Any], replay: Replay) -> None:
    replay.limited = False
    try:
        result = call()
    except CalicoError as error:
        overcounted = step["op"] == "IPsByHandle" and step["result"] == [] and isinstance(error, NotFound)
        assert step.get("error") or overcounted, error
        wanted = ERRORS.get(step.get("error_type", ""), CalicoError)
        assert isinstance(error, wanted) or overcounted, error
        return
    assert bool(step.get("error")) == replay.limited, step
    if step["op"] == "AutoAssign":
        recorded = {
            family: {"ips": part.get("ips") or [], "requested": part["requested"]}
            for family, part in step["result"].items()
        }
        assert result == recorded
    elif step["op"] not in ("Resource", "DeleteResource", "PutKey", "DeleteKey", "AgeBlock"):
        assert result == step.get("result"), step


@pytest.mark.parametrize("remember", [False, True], ids=["fresh", "remembering"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_golden_scenario(kv: EtcdKV, name: str, remember: bool) -> None:
    """Each step answers as the original did and leaves the same addresses, owners, queues, attributes and true handle
    counts.
    """
    replay, state = Replay(kv, remember), State(kv)
    for number, step in zip(itertools.count(), SCENARIOS[name]):
        check_answer(step, lambda: replay.run(step["op"], step["args"]), replay)
        state.record(step)
        try:
            state.check()
        except AssertionError as error:
            raise AssertionError(f"after step {number} {step['op']} {step['args']}: {error}") from error


def test_golden_file_is_whole() -> None:
    """Nothing of the recording was lost on the way here."""
    assert len(SCENARIOS) == 60
    assert sum(map(len, SCENARIOS.values())) == 462
    assert codec.encode(IPAMConfig(auto_allocate_blocks=True)) == b'{"auto_allocate_blocks":true}'
