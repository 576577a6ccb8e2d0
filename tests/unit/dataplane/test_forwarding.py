"""Accept rules where Docker drops, judged by what the commands are told."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Sequence

import pytest

from calico_plugin.dataplane import forwarding
from calico_plugin.dataplane.forwarding import COMMENT, Filter
from calico_plugin.errors import DataplaneError


class FakeFilters:
    """iptables commands as chains in memory; `refuse` makes changes fail."""

    def __init__(self, **chains: dict[str, list[str]]) -> None:
        self.chains = {command.replace("_", "-"): parts for command, parts in chains.items()}
        self.asked: list[Sequence[str]] = []
        self.refuse = False

    def __call__(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(words)
        command, verb, chain = words[0], words[3], words[4]
        chains = self.chains.get(command, {})
        if chain not in chains:
            return subprocess.CompletedProcess(list(words), 1, "", "No chain by that name")
        if verb == "-S":
            return subprocess.CompletedProcess(list(words), 0, "\n".join(chains[chain]) + "\n", "")
        if self.refuse:
            return subprocess.CompletedProcess(list(words), 4, "", "Permission denied")
        rule = " ".join(f'"{word}"' if " " in word else word for word in words[6 if verb == "-I" else 5:])
        if verb == "-I":
            chains[chain].insert(1, f"-A {chain} {rule}")
        else:
            chains[chain].remove(f"-A {chain} {rule}")
        return subprocess.CompletedProcess(list(words), 0, "", "")


NFT = (Filter("iptables-nft"),)


def test_docker_user_is_used_where_it_exists() -> None:
    """Both rules go on top of DOCKER-USER, and nothing is done a second time."""
    fake = FakeFilters(iptables_nft={"DOCKER-USER": ["-N DOCKER-USER", "-A DOCKER-USER -j RETURN"]})
    assert len(forwarding.ensure(fake, NFT)) == 1
    added = [line.split()[2:4] for line in fake.chains["iptables-nft"]["DOCKER-USER"][1:3]]
    assert added == [["-o", "cali+"], ["-i", "cali+"]]
    assert forwarding.ensure(fake, NFT) == ()


def test_forward_only_when_it_drops() -> None:
    """Without Docker's chain FORWARD gets the rules when its policy is DROP, and is left alone otherwise."""
    fake = FakeFilters(iptables_nft={"FORWARD": ["-P FORWARD ACCEPT"]})
    assert forwarding.ensure(fake, NFT) == ()
    fake.chains["iptables-nft"]["FORWARD"] = ["-P FORWARD DROP"]
    assert len(forwarding.ensure(fake, NFT)) == 1
    assert all(COMMENT in line for line in fake.chains["iptables-nft"]["FORWARD"][1:])


def test_one_missing_rule_is_put_back() -> None:
    """Only what is missing is inserted; rules of others stay."""
    fake = FakeFilters(iptables_nft={"DOCKER-USER": ["-N DOCKER-USER", "-A DOCKER-USER -s 10.0.0.0/8 -j DROP"]})
    forwarding.ensure(fake, NFT)
    del fake.chains["iptables-nft"]["DOCKER-USER"][1]
    forwarding.ensure(fake, NFT)
    assert len(fake.chains["iptables-nft"]["DOCKER-USER"]) == 4
    assert "-A DOCKER-USER -s 10.0.0.0/8 -j DROP" in fake.chains["iptables-nft"]["DOCKER-USER"]


def test_remove_takes_all_of_ours() -> None:
    """Doubled rules too, in both chains; others stay."""
    others = {"DOCKER-USER": ["-N DOCKER-USER"], "FORWARD": ["-P FORWARD DROP", "-A FORWARD -j X"]}
    fake = FakeFilters(iptables_nft={chain: list(rules) for chain, rules in others.items()})
    forwarding.ensure(fake, NFT)
    fake.chains["iptables-nft"]["DOCKER-USER"] += fake.chains["iptables-nft"]["DOCKER-USER"][1:]
    assert forwarding.remove(fake, NFT) == 4
    assert fake.chains["iptables-nft"] == others


def test_legacy_is_not_asked_where_it_has_no_filter(tmp_path: Path) -> None:
    """Listing a legacy table would make the kernel create it."""
    names = tmp_path / "ip_tables_names"
    legacy = (Filter("iptables-legacy", names),)
    fake = FakeFilters(iptables_legacy={"DOCKER-USER": ["-N DOCKER-USER"]})
    assert forwarding.ensure(fake, legacy) == () and fake.asked == []
    names.write_text("nat\nfilter\n")
    assert len(forwarding.ensure(fake, legacy)) == 1


def test_refusal_names_the_command() -> None:
    """A change that fails is an error with iptables' own words."""
    fake = FakeFilters(iptables_nft={"DOCKER-USER": ["-N DOCKER-USER"]})
    fake.refuse = True
    with pytest.raises(DataplaneError, match="iptables-nft .*: Permission denied"):
        forwarding.ensure(fake, NFT)


def test_missing_command_is_no_error() -> None:
    """A host without a back end has nothing to put right there."""
    assert forwarding.ensure(filters=(Filter("iptables-that-nobody-has"),)) == ()
