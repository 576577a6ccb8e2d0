"""Numbers of nft's data types: the kernel only keeps them, so that who lists the table sees addresses and names."""

IPV4, IPV6, PROTOCOL, PORT = 7, 8, 12, 13
ICMP_TYPE, ICMPV6_TYPE, ICMP_CODE, ICMPV6_CODE = 14, 29, 32, 33
IFNAME = 41


def concatenated(*kinds: int) -> int:
    """nft keeps six bits for each part."""
    value = 0
    for kind in kinds:
        value = value << 6 | kind
    return value
