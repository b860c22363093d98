import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.domain.addresses import OPERATORS_OWN, Address, AddressPolicy, numeric, parse_networks
from outbox.domain.errors import InvalidError

PUBLIC_ONLY = AddressPolicy()
PRIVATE = AddressPolicy(parse_networks("private"))
METADATA = ["169.254.169.254", "169.254.0.0", "169.254.255.255", "169.254.170.2", "fe80::1", "febf::1", "fd00:ec2::254",
            "100.100.100.200", "192.0.0.192", "::ffff:169.254.169.254", "fe80::1%eth0"]  # fmt: skip
V4 = st.ip_addresses(v=4).map(str).map(IPv4Address)
ANY = st.ip_addresses().map(lambda address: ipaddress.ip_address(str(address)))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0X7F.1", "0177.0.0.1", "017700000001", "127.0.0.1.",
     "0", "0.0.0.0", "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "127\u30020\u30020\u30021", "127\uff610\uff610\uff611",
     "\uff11\uff12\uff17.0.0.1", "127\uff0e0\uff0e0\uff0e1", "::1", "[::1]", "[::]", "[::ffff:127.0.0.1]",
     "[::127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "::1%lo", "10.0.0.1", "192.168.1.1", "172.16.5.4", "0xa9fea9fe",
     "169.254.169.254", "100.64.0.1", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "255.255.255.255"],
    ids=ascii,
)  # fmt: skip
def test_a_hostile_spelling_is_seen_through(host: str) -> None:
    """Whatever an inner address is written as, it is refused before anything is resolved."""
    assert PUBLIC_ONLY.refusal_of_host(host)


@pytest.mark.parametrize(
    "host",
    ["h.test", "localhost", "deadbeef", "127.0.0.1.nip.io", "", "n8n", "1.2.3.4.5", "\ud800", "a\x00", "0x", "::g"],
    ids=ascii,
)  # fmt: skip
def test_a_name_is_left_to_the_resolver(host: str) -> None:
    """What spells no address is a name, and judged by what it resolves to."""
    assert numeric(host) is None
    assert PUBLIC_ONLY.refusal_of_host(host) == ""


@pytest.mark.parametrize("host", ["93.184.216.34", "1.1.1.1", "0x01010101", "[2606:4700::1111]", "[::ffff:1.1.1.1]"])
def test_a_public_address_may_be_called(host: str) -> None:
    """In any spelling too."""
    assert PUBLIC_ONLY.refusal_of_host(host) == ""


@given(V4)
def test_all_spellings_are_one_address(address: IPv4Address) -> None:
    """Decimal, hexadecimal, octal, shortened, full-width and mapped spellings are read alike."""
    number = int(address)
    one, *rest = address.packed
    wide = str.maketrans("0123456789.", "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19\u3002")
    spellings = [str(number), hex(number), f"0{number:o}", f"{address}.", str(address).translate(wide)]
    spellings += [f"{one:#x}.{int.from_bytes(bytes(rest), 'big')}", ".".join(f"0{part:o}" for part in address.packed)]
    assert [numeric(spelling) for spelling in spellings] == [address] * 7
    mapped = numeric(f"[::ffff:{address}]")
    assert isinstance(mapped, IPv6Address)
    assert PUBLIC_ONLY.refusal(mapped) == PUBLIC_ONLY.refusal(address)


@pytest.mark.parametrize(
    "network",
    ["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
     "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "169.254.0.0/16",
     "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"],
)  # fmt: skip
def test_a_special_network_is_refused_from_end_to_end(network: str) -> None:
    """Its first and last address are; the addresses just outside belong to somebody and may be called."""
    whole = ipaddress.ip_network(network)
    first, last = whole.network_address, whole.broadcast_address
    assert PUBLIC_ONLY.refusal(first)
    assert PUBLIC_ONLY.refusal(last)
    assert int(first) == 0 or PUBLIC_ONLY.refusal(first - 1) == ""
    assert PUBLIC_ONLY.refusal(last + 1) == ""


@pytest.mark.parametrize(
    ("address", "public"),
    [("223.255.255.255", True), ("224.0.0.0", False), ("239.9.9.9", False), ("240.0.0.0", False),
     ("255.255.255.255", False), ("2000::", True), ("3ffe:ffff::", True), ("1fff:ffff::", False), ("4000::", False),
     ("::", False), ("fc00::1", False), ("ff02::1", False), ("64:ff9b::101:101", False), ("64:ff9b:1::1", False),
     ("100::1", False), ("5f00::1", False), ("::1.1.1.1", False)],
)  # fmt: skip
def test_the_outer_bounds_of_the_public_space(address: str, public: bool) -> None:  # noqa: FBT001
    """Multicast, reserved, translated and unassigned addresses are not public."""
    assert (PUBLIC_ONLY.refusal(ipaddress.ip_address(address)) == "") is public


@pytest.mark.parametrize("address", METADATA)
@pytest.mark.parametrize(
    "policy", [PUBLIC_ONLY, PRIVATE, OPERATORS_OWN, AddressPolicy(parse_networks("169.254.0.0/16, fe80::/10"))]
)
def test_metadata_is_never_called(policy: AddressPolicy, address: str) -> None:
    """Not even where its network is allowed by name, or everything is."""
    assert "never called" in policy.refusal(ipaddress.ip_address(address))


@given(ANY)
def test_the_operators_own_url_may_lead_anywhere_else(address: Address) -> None:
    """Whatever is refused to the operator's own URL is metadata."""
    assert OPERATORS_OWN.refusal(address) == "" or "metadata" in OPERATORS_OWN.refusal(address)


@given(ANY)
def test_a_refusal_says_what_to_do(address: Address) -> None:
    """It names the address, and the setting that would allow it unless nothing does."""
    refusal = PUBLIC_ONLY.refusal(address)
    assert refusal == "" or "OUTBOX_ALLOWED_NETWORKS" in refusal or "metadata" in refusal


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.9.9", "[::1]", "[fd12::1]", "[::ffff:10.0.0.1]"]
)
def test_the_word_private_allows_neighbours(host: str) -> None:
    """All private and loopback networks, for receivers in the next container."""
    assert "OUTBOX_ALLOWED_NETWORKS" in PUBLIC_ONLY.refusal_of_host(host)
    assert PRIVATE.refusal_of_host(host) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "100.64.0.1", "172.32.0.1", "192.0.2.1", "[::]", "[2002::1]", "224.0.0.1"])
def test_the_word_private_allows_nothing_else(host: str) -> None:
    """What is neither private nor loopback stays as it was."""
    assert PRIVATE.refusal_of_host(host) == PUBLIC_ONLY.refusal_of_host(host)


@given(st.ip_addresses(v=4), st.integers(0, 32), ANY)
def test_an_allowed_network_is_allowed_and_no_more(base: IPv4Address, length: int, address: Address) -> None:
    """An allowance reaches to the ends of its network; one for IPv4 holds for mapped addresses, and no other IPv6."""
    network = ipaddress.ip_network(f"{base}/{length}", strict=False)
    policy = AddressPolicy(parse_networks(str(network)))
    meant = (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
    inside = meant.version == 4 and meant in network
    assert (policy.refusal(address) == "") is (
        "metadata" not in PUBLIC_ONLY.refusal(address) and (inside or PUBLIC_ONLY.refusal(address) == "")
    )


def test_networks_are_read_from_a_list() -> None:
    """Networks, single addresses and the word, in any case, with spaces and empty parts."""
    assert parse_networks(" 10.0.0.0/8,, 192.168.1.7 ,fd00::/8,") == tuple(
        map(ipaddress.ip_network, ("10.0.0.0/8", "192.168.1.7/32", "fd00::/8"))
    )
    assert parse_networks("10.0.0.0/8,Private")[1:] == parse_networks("private")
    assert parse_networks("") == ()


@pytest.mark.parametrize("text", ["10.0.0.1/8", "h.test", "10.0.0.0/33", "10.0.0.0/8 192.168.0.0/16", "*", "privates"])
def test_what_is_no_network_is_named(text: str) -> None:
    """The message quotes the part, and shows how one is written."""
    with pytest.raises(InvalidError, match="is no network: write ") as refused:
        parse_networks(f"private,{text}")
    assert repr(text) in refused.value.detail
