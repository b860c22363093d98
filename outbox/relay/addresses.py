"""The address guard: a webhook's URL is judged when it is set, and every address again when it is connected to."""

import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import anyio

from outbox.domain.addresses import AddressPolicy
from outbox.domain.errors import InvalidError

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
    """Refuse a URL whose host is, or now resolves to, an address outside `policy`. Raises InvalidError.

    A name that does not resolve within two seconds is accepted: it is judged again at every connect.
    """
    host = urlsplit(url).hostname or ""
    refusal = policy.refusal_of_host(host)
    if not refusal:
        refusals = [policy.refusal(ipaddress.ip_address(address)) for address in await _resolved(host)]
        refusal = next(filter(None, refusals), "")
    if refusal:
        raise InvalidError(refusal, where)


async def _resolved(host: str) -> list[str]:
    with anyio.move_on_after(RESOLVE_TIMEOUT_S):
        try:
            found = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return []
        return [str(entry[4][0]) for entry in found]
    return []
