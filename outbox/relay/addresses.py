"""The address guard: a webhook's URL is judged when it is set, and every address again when it is connected to."""

import ipaddress
import socket
from collections.abc import Callable

import anyio

from outbox.domain.addresses import AddressPolicy, numeric
from outbox.domain.errors import InvalidError
from outbox.domain.webhooks import check_url

RESOLVE_TIMEOUT_S = 2.0

AddressInfo = tuple[int, int, int, str, tuple[object, ...]]


class RefusedAddressError(OSError):
    """The address about to be connected to may not be called."""


def guarded_sockets(policy: AddressPolicy) -> Callable[[AddressInfo], socket.socket]:
    """Return a socket factory that refuses addresses outside `policy`, whatever name led to them.

    It runs for every new connection, literals included, with the very address that is dialled.
    """

    def make(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        refusal = policy.refusal(ipaddress.ip_address(str(address[0])))
        if refusal:
            raise RefusedAddressError(refusal)
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)  # noqa: FBT003 - its only parameter
        return made

    return make


async def judge_url(url: str, policy: AddressPolicy, where: str = "$.url") -> None:
    """Refuse a URL that cannot be called, or whose host is, or now resolves to, an address outside `policy`.

    A name that does not resolve within two seconds is accepted: it is judged again at every connect. Raises
    InvalidError.
    """
    host = check_url(url, where).hostname or ""
    refusal = policy.refusal_of_host(host) or _odd_spelling(host)
    if not refusal:
        refusals = [policy.refusal(ipaddress.ip_address(address)) for address in await _resolved(host)]
        refusal = next(filter(None, refusals), "")
    if refusal:
        raise InvalidError(refusal, where)


def _odd_spelling(host: str) -> str:
    """Return how to write an address that HTTP clients take for a name (127.1, 0x7f000001), or an empty string."""
    address = numeric(host)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return f"write the host as {address}" if address else ""
    return ""


async def _resolved(host: str) -> list[str]:
    with anyio.move_on_after(RESOLVE_TIMEOUT_S):
        try:
            found = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return []
        return [str(entry[4][0]) for entry in found]
    return []
