"""Which network addresses may be called. Pure: names are resolved elsewhere, and judged here.

Sources: the IANA special-purpose registries for IPv4 and IPv6; the instance metadata addresses of the large clouds.
Explicit lists, since `ipaddress.is_global` differs between Python versions.
"""

import ipaddress
import socket
import unicodedata
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from msgspec import Struct

from outbox.domain.errors import InvalidError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(part) for part in text.split())


_PRIVATE = _networks("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 127.0.0.0/8 ::1/128 fc00::/7")
_NOT_PUBLIC_4 = _networks(
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 "
    "192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
)
_PUBLIC_6 = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC_6 = _networks("2001::/23 2001:db8::/32 2002::/16 3fff::/20")
_METADATA = _networks("169.254.0.0/16 100.100.100.200/32 192.0.0.192/32 fe80::/10 fd00:ec2::254/128")
_EVERYTHING = _networks("0.0.0.0/0 ::/0")


class AddressPolicy(Struct, frozen=True):
    """The networks that may be called beside the public ones."""

    allowed: tuple[Network, ...] = ()

    def refusal(self, address: Address) -> str:
        """Return why `address` may not be called, or an empty string if it may."""
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or IPv6Address(int(address))  # without a scope id
        if _within(address, _METADATA):
            return f"{address} is a link-local or metadata address, which is never called"
        if _public(address) or _within(address, self.allowed):
            return ""
        return f"{address} is not a public address: allow its network with OUTBOX_ALLOWED_NETWORKS"

    def refusal_of_host(self, host: str) -> str:
        """Return why `host` may not be called if it is an address in any spelling; a name is for the resolver."""
        address = numeric(host)
        return "" if address is None else self.refusal(address)


OPERATORS_OWN = AddressPolicy(_EVERYTHING)


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks that a comma-separated list names; the word `private` means all private and loopback ones.

    Raises InvalidError.
    """
    networks: list[Network] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if part.lower() == "private":
            networks.extend(_PRIVATE)
            continue
        try:
            networks.append(ipaddress.ip_network(part))
        except ValueError as error:
            msg = f"{part!r} is no network: write 10.0.0.0/8, 192.168.1.7 or the word private ({error})"
            raise InvalidError(msg) from error
    return tuple(networks)


def numeric(host: str) -> Address | None:
    """Return the address that `host` spells (decimal, hex, octal, shortened, full-width digits, brackets), or None."""
    plain = unicodedata.normalize("NFKC", host).replace("\u3002", ".").strip("[]").rstrip(".")
    try:
        return ipaddress.ip_address(plain)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(plain))
    except (OSError, ValueError):
        return None


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not _within(address, _NOT_PUBLIC_4)
    return address in _PUBLIC_6 and not _within(address, _NOT_PUBLIC_6)
