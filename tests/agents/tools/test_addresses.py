"""Classification of public addresses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.tools.web import is_public


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_public_addresses_are_public(address):
    assert is_public(address)


@given(st.ip_addresses())
def test_nothing_is_public_that_python_calls_private(address):
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        ipv4_mapped = getattr(address, "ipv4_mapped", None)
        assert not is_public(str(address)) or ipv4_mapped is not None


@given(st.ip_addresses(v=4))
def test_an_address_wrapped_in_the_new_protocol_is_judged_by_itself(address):
    assert is_public(f"::ffff:{address}") == is_public(str(address))
    number = int(address)
    assert is_public(f"64:ff9b::{number >> 16:x}:{number & 0xFFFF:x}") == is_public(str(address))
    assert not is_public(f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1")


@pytest.mark.parametrize("text", ["", "jay.example", "1.2.3", "fe80::1%eth0", "8.8.8.8/32"])
def test_what_is_no_address_is_not_public(text):
    assert not is_public(text)
