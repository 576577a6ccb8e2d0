"""Whether this host can run Calico: `calicoctl node checksystem` (node-and-cli 4.6). Nothing is changed by looking.

Modules are found in /sys/module, in the kernel's lists of modules and built-ins, or in its configuration; what must be
there is also tried, since a small kernel has no such lists. What only the original's iptables and IPVS modes need is
optional here, and shown as SKIP.
"""

from __future__ import annotations

import gzip
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from calico_plugin.dataplane import sysctl

OLDEST_KERNEL = (2, 6, 24)
OK, FAIL, SKIP = "OK", "FAIL", "SKIP"
_TRY_SECONDS = 5.0
_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")

# module -> (kernel configuration option, needed here)
MODULES = {
    "nf_tables": ("CONFIG_NF_TABLES", True),
    "nf_conntrack": ("CONFIG_NF_CONNTRACK", True),
    "veth": ("CONFIG_VETH", True),
    "nf_conntrack_netlink": ("CONFIG_NF_CT_NETLINK", False),
    "nft_fib": ("CONFIG_NFT_FIB", False),
    "ip_set": ("CONFIG_IP_SET", False),
    "ip_tables": ("CONFIG_IP_NF_IPTABLES", False),
    "ip6_tables": ("CONFIG_IP6_NF_IPTABLES", False),
    "ipt_REJECT": ("CONFIG_IP_NF_TARGET_REJECT", False),
    "ipt_ipvs": ("CONFIG_NETFILTER_XT_MATCH_IPVS", False),
    "vfio-pci": ("CONFIG_VFIO_PCI", False),
    "xt_addrtype": ("CONFIG_NETFILTER_XT_MATCH_ADDRTYPE", False),
    "xt_bpf": ("CONFIG_NETFILTER_XT_MATCH_BPF", False),
    "xt_conntrack": ("CONFIG_NETFILTER_XT_MATCH_CONNTRACK", False),
    "xt_mark": ("CONFIG_NETFILTER_XT_MARK", False),
    "xt_multiport": ("CONFIG_NETFILTER_XT_MATCH_MULTIPORT", False),
    "xt_rpfilter": ("CONFIG_IP_NF_MATCH_RPFILTER", False),
    "xt_set": ("CONFIG_NETFILTER_XT_SET", False),
    "xt_u32": ("CONFIG_NETFILTER_XT_MATCH_U32", False),
}
PROGRAMS = {"bird": "bird2", "s6-svscan": "s6", "iptables": "iptables"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `advice` says what to do about a failure."""

    item: str
    result: str
    advice: str = ""

    def __str__(self) -> str:
        return f"\t\t{self.item:<20}\t\t\t\t\t{self.result}"


def kernel_version(release: str) -> Check:
    """`6.1.0-13-amd64` is newer than the oldest that works."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    version = tuple(int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    oldest = ".".join(map(str, OLDEST_KERNEL))
    return Check(release, OK if version >= OLDEST_KERNEL else FAIL, f"the oldest kernel that works is {oldest}")


def modules(release: str, config: Path | None, root: Path = Path("/")) -> Iterator[Check]:
    """One check a module."""
    known = _module_names(release, root)
    options = _options(release, config, root)
    for name, (option, needed) in MODULES.items():
        there = (root / "sys/module" / name.replace("-", "_")).exists()
        present = there or name.replace("-", "_") in known or option in options
        if needed and not present:
            present = works(name)
        advice = f"load it (modprobe {name}), or set {option} in the kernel"
        yield Check(name, OK if present else FAIL if needed else SKIP, advice)


def works(name: str) -> bool:
    """Ask the kernel by doing, in a network namespace that ends with the question."""
    words = {
        "nf_tables": ["nft", "list", "tables"],
        "nf_conntrack": ["test", "-e", "/proc/sys/net/netfilter/nf_conntrack_max"],
        "veth": ["ip", "link", "add", "type", "veth"],
    }[name]
    try:
        done = subprocess.run(["unshare", "-n", *words], capture_output=True, timeout=_TRY_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _module_names(release: str, root: Path) -> set[str]:
    found = set()
    for name in ("modules.dep", "modules.builtin"):
        try:
            lines = (root / "lib/modules" / release / name).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            file = os.path.basename(line.partition(":")[0])
            for suffix in _SUFFIXES:
                if file.endswith(suffix):
                    found.add(file.removesuffix(suffix).replace("-", "_"))
    return found


def _options(release: str, config: Path | None, root: Path) -> set[str]:
    """Options that are `y` or `m` in the first configuration that can be read."""
    usual = [
        root / "proc/config.gz", root / f"boot/config-{release}", root / f"lib/modules/{release}/build/.config",
        root / f"lib/modules/{release}/config",
    ]  # fmt: skip
    for path in [config] if config else usual:
        try:
            data = path.read_bytes()
            text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode(errors="replace")
        except OSError:
            continue
        return set(re.findall(r"^(CONFIG_\w+)=[ym]$", text, re.MULTILINE))
    return set()


def host() -> Iterator[Check]:
    """Programs, and settings of the kernel that would break forwarding silently (node-and-cli 6.13)."""
    for program, package in PROGRAMS.items():
        found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        yield Check(program, OK if found else FAIL, f"apt-get install {package}")
    forwarding = sysctl.read("net/ipv4/ip_forward") == "1"
    yield Check("ip_forward", OK if forwarding else SKIP, "`calicoctl node run` switches it on")
    loose = sysctl.read("net/ipv4/conf/all/rp_filter") == "2"
    yield Check("rp_filter", SKIP if loose else OK, "net.ipv4.conf.all.rp_filter is 2 (loose); 0 or 1 is safer")


def release() -> str:
    return platform.release()
