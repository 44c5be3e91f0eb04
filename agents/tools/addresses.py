"""Classify IP addresses: tools may reach only public addresses, not this machine or its local network."""

from __future__ import annotations

import ipaddress

# In IPv6 only 2000::/3 is public unicast. These parts of it are not public, or tunnel to IPv4 (RFC 6890,
# 9637).
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3ffe::/16", "3fff::/20")
)
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
# Some versions of Python class these as public, but they are reserved (RFC 6890; Oracle's metadata service)
# or answered by the cloud's host (Azure).
_SPECIAL = tuple(
    ipaddress.IPv4Network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)


def is_public(address: str) -> bool:
    """Return True if a numeric IP address is public.

    Return False for private, loopback, link-local, carrier-grade NAT, multicast, reserved and documentation
    addresses, also if an IPv6 address embeds such an address. The cloud metadata services at 169.254.169.254
    are link-local. Return False for strings that are not IP addresses.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id:
            return False
        inner = ip.ipv4_mapped
        if ip in _TRANSLATED:  # NAT64: networks without IPv4 reach IPv4 through this prefix
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is None:
            return ip in _UNICAST and not any(ip in network for network in _NOT_PUBLIC)
        ip = inner
    return (
        ip.is_global
        and not ip.is_multicast
        and not ip.is_reserved
        and not any(ip in network for network in _SPECIAL)
    )
