"""Next hops of containers in several networks."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from calico_plugin.driver import hops
from calico_plugin.driver.hops import Hops
from calico_plugin.errors import DataplaneError


def test_each_network_of_a_container_has_its_own_hop(tmp_path: Path) -> None:
    """The lowest that is free in this container; other containers do not matter; asked again, the same."""
    used = Hops(tmp_path)
    assert [used.take("box", link) for link in ("cali1", "cali2", "cali3")] == [1, 2, 3]
    assert used.take("other", "cali9") == 1
    assert used.take("box", "cali2") == 2
    used.give_back("cali2")
    assert used.take("box", "cali4") == 2


def test_the_first_hop_is_calicos() -> None:
    assert (hops.ipv4(1), hops.ipv4(2)) == (ip_address("169.254.1.1"), ip_address("169.254.1.2"))
    assert hops.ipv6(1) == ip_address("fe80::a9fe:101")
    assert hops.ipv6(2).is_link_local


def test_a_restarted_driver_knows_them(tmp_path: Path) -> None:
    """Of links that still are; files of others, and broken ones, go."""
    before = Hops(tmp_path)
    for link in ("cali1", "cali2", "cali3"):
        before.take("/netns/box", link)
    (tmp_path / "driver-hops/cali4").write_text("first /netns/box")
    used = Hops(tmp_path, {"cali2", "cali4"})
    assert used.held("cali2") and not used.held("cali1") and not used.held("cali4")
    assert used.take("/netns/box", "cali8") == 1
    assert used.take("/netns/box", "cali9") == 3
    assert sorted(file.name for file in (tmp_path / "driver-hops").iterdir()) == ["cali2", "cali8", "cali9"]
    used.give_back("cali8")
    assert not (tmp_path / "driver-hops/cali8").exists()


def test_a_link_that_moved_to_another_container_frees_its_old_hop(tmp_path: Path) -> None:
    used = Hops(tmp_path)
    used.take("box", "cali1")
    assert used.take("other", "cali1") == 1
    assert used.take("box", "cali2") == 1


def test_there_is_an_end(tmp_path: Path) -> None:
    used = Hops(tmp_path)
    for number in range(254):
        used.take("box", f"cali{number}")
    with pytest.raises(DataplaneError, match="254"):
        used.take("box", "one more")
