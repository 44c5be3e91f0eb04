"""Which internet addresses a tool may reach: public ones, none that only this machine or network can."""

from __future__ import annotations

import ipaddress

# Of IPv6 only 2000::/3 is public unicast; these parts of it are not, or lead to IPv4 by a tunnel (RFC 6890,
# 9637).
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3ffe::/16", "3fff::/20")
)
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
# Public to some versions of Python, yet special (RFC 6890; Oracle's metadata) or answered by the cloud's host
# (Azure).
_SPECIAL = tuple(
    ipaddress.IPv4Network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)


def is_public(address: str) -> bool:
    """Return whether a numeric address is a public one.

    False for private, loopback, link-local (with the clouds' metadata services at 169.254.169.254),
    carrier-grade, multicast, reserved and documentation addresses, also where IPv6 wraps them; False for what
    is no address.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id:
            return False
        inner = parsed.ipv4_mapped
        if parsed in _TRANSLATED:  # how networks without IPv4 reach it
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is None:
            return parsed in _UNICAST and not any(parsed in network for network in _NOT_PUBLIC)
        parsed = inner
    return (
        parsed.is_global
        and not parsed.is_multicast
        and not parsed.is_reserved
        and not any(parsed in network for network in _SPECIAL)
    )
