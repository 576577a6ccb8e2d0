"""The text of `calicoctl node status`, on what a BIRD 2.0.12 really printed."""

from __future__ import annotations

from calico_plugin.node.report import hints, problems, rows, summary, tables
from calico_plugin.routing.birdc import parse_protocols, parse_reply, parse_status

PROTOCOLS = """2002-Name       Proto      Table      State  Since         Info
1002-device1    Device     ---        up     09:00:00
1006-
1002-kernel4    Kernel     master4    up     09:00:00
1006-  Channel ipv4
     State:          UP
1002-Mesh_10_192_0_2 BGP        ---        up     09:14:02      Established
1006-  BGP state:          Established
     Neighbor address: 10.192.0.2
     Neighbor AS:      64512
   Channel ipv4
     State:          UP
1002-Node_10_192_0_3_port_1790 BGP        ---        start  09:20:55      Active        Socket: Connection refused
1006-  BGP state:          Active
     Neighbor address: 10.192.0.3
     Last error:       Socket: Connection refused
1002-Global_10_192_0_254 BGP        ---        start  2026-03-01    Idle          BGP Error: Bad peer AS
1006-  BGP state:          Idle
     Neighbor address: 10.192.0.254
1002-other BGP        ---        up     09:00:00      Established
1006-  BGP state:          Established
     Neighbor address: 10.9.9.9
1002-Mesh_10_192_0_9 BGP        ---        start  09:14:02      Passive
1006-  BGP state:          Passive
     Neighbor address: 10.192.0.9
0000
"""
STATUS = """1000-BIRD 2.0.12
1011-Router ID is 10.192.0.1
 Hostname is a
 Current server time is 2026-03-02 10:00:00.000
 Last reboot on 2026-03-02 09:00:00.000
 Last reconfiguration on 2026-03-02 09:14:02.000
0013 Daemon is up and running
"""
EXPECTED = """IPv4 BGP status
+-----------------+-------------------+-------+------------+--------------------------------+
|  PEER ADDRESS   |     PEER TYPE     | STATE |   SINCE    |              INFO              |
+-----------------+-------------------+-------+------------+--------------------------------+
| 10.192.0.2      | node-to-node mesh | up    | 09:14:02   | Established                    |
| 10.192.0.3:1790 | node specific     | start | 09:20:55   | Active Socket: Connection      |
|                 |                   |       |            | refused                        |
| 10.192.0.254    | global            | start | 2026-03-01 | Idle BGP Error: Bad peer AS    |
| 10.192.0.9      | node-to-node mesh | start | 09:14:02   | Passive                        |
+-----------------+-------------------+-------+------------+--------------------------------+

IPv6 BGP status
No IPv6 peers found.

"""


def test_tables() -> None:
    """The original's form: centred headings, INFO wrapped, only our sessions, a port shown as one."""
    found = rows(parse_protocols(tuple(parse_reply(PROTOCOLS))))
    assert tables(found) == EXPECTED
    assert [row.established for row in found] == [True, False, False, False]


def test_hints_name_the_cause() -> None:
    """One sentence for each session that is not up, with the node's name where it is known."""
    found = rows(parse_protocols(tuple(parse_reply(PROTOCOLS))))
    lines = list(hints(found, {"10.192.0.3": "host3"}))
    assert len(lines) == 3
    assert lines[0].startswith("10.192.0.3:1790 (node host3): nothing listens there")
    assert "AS number" in lines[1] and "has to connect to us" in lines[2]


def test_summary() -> None:
    """BIRD's own line."""
    status = parse_status(tuple(parse_reply(STATUS)))
    assert summary(status, []) == "BIRD 2.0.12, router id 10.192.0.1: 0 of 0 sessions established"
    assert status.last_reconfiguration.startswith("2026-03-02 09:14:02") and not status.graceful_restart


def test_problems() -> None:
    """Every sentence under one heading; no heading when there is none."""
    told = {"encapsulation": ["no IPIP"], "bird": ["BGPPeer(x): left out"]}
    assert list(problems(told)) == ["Not in force as configured:", "  BGPPeer(x): left out", "  no IPIP"]
    assert list(problems({})) == []
