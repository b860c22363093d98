"""A webhook: a configured receiver, global or local to an instance. Its settings, and the checks they must pass."""

import re
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct

from outbox.domain import catalogue
from outbox.domain.catalogue import RouteStyle
from outbox.domain.errors import ConflictError, InvalidError
from outbox.domain.events import check_instance, ordering_key
from outbox.domain.holding import Interval

URL_MAX_LENGTH = 2048
HEADERS_MAX = 50
HEADER_VALUE_MAX_LENGTH = 4096
CONCURRENCY_MAX = 1000
TIMEOUT_MAX_MS = 600_000
RATE_LIMIT_MAX = 10_000.0
JWT_KEY = "jwt_key"
"""The name of a header that is never sent: its value signs a token for every attempt."""

Scope = Literal["global", "instance"]
Source = Literal["api", "environment"]
Order = Literal["none", "instance", "chat"]
WebhookState = Literal["enabled", "disabled", "suspended"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_VISIBLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_URL_CHARACTERS = re.compile(r"[^\x00-\x20\x7f<>\"\\^`{|}\ud800-\udfff]+")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RESERVED_NAME = "test"  # what `POST .../test` has in the place of a name
_RESERVED_HEADERS = frozenset(
    {"host", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect", "cookie"}
)
_ODD_CHARACTER = f"a webhook's URL has 1 to {URL_MAX_LENGTH} characters, no space, control character or quote"
_NO_HOST = "a webhook's URL names a host, and a port from 1 to 65535 if any"
_RESERVED_PREFIXES = ("content-", "proxy-", "webhook-", "x-outbox-")


class Settings(Struct, frozen=True, kw_only=True):
    """What is set of a webhook, without its credentials.

    It stands in records, so every field is always written: a default may change, what was recorded may not.
    `events` holds canonical kinds, none of them meaning all; `by_events` appends the route suffix; `base64` false
    strips media; `route_style` None means the service's; `timeout_ms` None means the service's; `concurrency` is the
    most POSTs in flight, `rate_limit` the most POSTs a second, None meaning any number; `order` says whose deliveries
    go one at a time: those of an instance, or of a chat.
    """

    url: str
    enabled: bool = True
    by_events: bool = False
    events: tuple[str, ...] = ()
    base64: bool = True
    route_style: RouteStyle | None = None
    concurrency: int = 32
    timeout_ms: int | None = None
    order: Order = "none"
    rate_limit: float | None = None


QUEUEING, PROMOTING = 1, 2


class Conversion(NamedTuple):
    """How far a change of `order` has come.

    Phase 1: the unsettled deliveries up to the event `position` stand in their new queues, and so do those of events
    from the seq `until` on, which were accepted after the change. Phase 2: all do, and the queues up to the one with
    the key `position` have let their first delivery go. Phase 0: it is done.
    """

    phase: int
    position: int
    until: int

    @property
    def queueing(self) -> bool:
        """Whether older deliveries may not be in their new queues yet, so that nobody can tell who comes first."""
        return self.phase == QUEUEING


NO_CONVERSION = Conversion(0, 0, 0)
START_OF_QUEUES = -(2**63)


class Credentials(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What of a webhook must not stand in the log: header values, the user and password of its URL, its secret.

    `secret` is the key that signs its POSTs, decoded; empty, nothing signs them. Until `previous_until_ms` (since the
    epoch) the one that it replaced signs too. What is packed in the table of secrets goes by these names.
    """

    headers: dict[str, str] = {}
    userinfo: str = ""
    secret: bytes = b""
    previous_secret: bytes = b""
    previous_until_ms: int = 0

    @property
    def jwt_key(self) -> str | None:
        """The value of the header `jwt_key`, in any case of letters, or None."""
        return next((value for name, value in self.headers.items() if name.lower() == JWT_KEY), None)


class Address(NamedTuple):
    """What is unique among live webhooks; the unnamed one of an instance is the one that Evolution's routes show."""

    scope: Scope
    instance: str = ""
    name: str = ""

    @property
    def missing(self) -> str:
        """The sentence for when no live webhook is there."""
        owner = (
            "there is no global webhook" if self.scope == "global" else f"the instance {self.instance!r} has no webhook"
        )
        return f"{owner} named {self.name!r}" if self.name else owner


class Webhook(Struct, frozen=True):
    """A webhook as it stands at some point of the log.

    `number` is the seq of the record that first set it: the same name set again after a deletion is a new webhook.
    `secret_id` is the id under which its credentials are kept, empty if it has none. `suspended_ms` is since when it is
    suspended and `opened_ms` since when its lane's breaker is open, 0 if they are not; `held` are the times when it
    was disabled or suspended. `revision` grows whenever it is set, while the service runs. `damaged` says that its
    credentials were found not to be those that were set: they are left out, and nothing may be sent without them.
    """

    number: int
    scope: Scope
    instance: str
    name: str
    settings: Settings
    credentials: Credentials
    source: Source
    created_ms: int
    updated_ms: int
    secret_id: bytes = b""
    suspended_ms: int = 0
    held: tuple[Interval, ...] = ()
    opened_ms: int = 0
    conversion: Conversion = NO_CONVERSION
    revision: int = 0
    damaged: bool = False

    @property
    def state(self) -> WebhookState:
        """Whether it is enabled, disabled or suspended."""
        return webhook_state(self.settings, self.suspended_ms)

    @property
    def holds(self) -> bool:
        """Whether its deliveries are held: it is disabled, suspended or damaged."""
        return not self.settings.enabled or self.suspended_ms > 0 or self.damaged

    @property
    def address(self) -> Address:
        """What is unique among live webhooks: scope, instance and name."""
        return Address(self.scope, self.instance, self.name)

    @property
    def url(self) -> str:
        """The URL with its user and password, as it was set."""
        return join_userinfo(self.settings.url, self.credentials.userinfo)

    def takes(self, kind: str) -> bool:
        """Say whether events of the canonical `kind` go to it."""
        return self.settings.enabled and (not self.settings.events or kind in self.settings.events)


def webhook_state(settings: Settings, suspended_ms: int) -> WebhookState:
    """Return the state of a webhook that has those settings and is suspended since then (0: it is not)."""
    if not settings.enabled:
        return "disabled"
    return "suspended" if suspended_ms else "enabled"


def queue_of(order: Order, instance: str, chat_key: int) -> int | None:
    """Return the key of the queue in which a delivery stands under `order`; `chat_key` is its event's ordering key."""
    if order == "none":
        return None
    return chat_key if order == "chat" else ordering_key(instance, None)


def check_settings(settings: Settings, credentials: Credentials) -> None:
    """Refuse settings that could not be delivered with. Addresses are judged elsewhere. Raises InvalidError."""
    if settings.url or settings.enabled:
        check_url(settings.url)
    if credentials.userinfo and not _URL_CHARACTERS.fullmatch(credentials.userinfo):
        raise InvalidError(_ODD_CHARACTER, "$.url")
    check_headers(credentials.headers)
    _check_one_login(credentials)
    if not 1 <= settings.concurrency <= CONCURRENCY_MAX:
        msg = f"concurrency is 1 to {CONCURRENCY_MAX}"
        raise InvalidError(msg, "$.concurrency")
    if settings.timeout_ms is not None and not 1 <= settings.timeout_ms <= TIMEOUT_MAX_MS:
        msg = f"timeout_ms is 1 to {TIMEOUT_MAX_MS}"
        raise InvalidError(msg, "$.timeout_ms")
    rate = settings.rate_limit
    if rate is not None and not 0 < rate <= RATE_LIMIT_MAX:
        msg = f"rate_limit is a number of POSTs a second, more than 0 and at most {RATE_LIMIT_MAX:g}"
        raise InvalidError(msg, "$.rate_limit")


def _check_one_login(credentials: Credentials) -> None:
    names = {name.lower(): name for name in credentials.headers}
    if credentials.userinfo and names.keys() & {"authorization", JWT_KEY}:
        msg = "user and password in the URL and an authorization header contradict each other"
        raise InvalidError(msg, "$.headers")
    if {"authorization", JWT_KEY} <= names.keys():
        msg = "an authorization header and a jwt_key, which makes one, contradict each other"
        raise InvalidError(msg, "$.headers")
    if credentials.jwt_key == "":
        msg = "a jwt_key that is empty can sign no token"
        raise InvalidError(msg, f"$.headers.{names[JWT_KEY]}")


def check_url(url: str, where: str = "$.url") -> SplitResult:
    """Return the parts of `url`. Raises InvalidError unless it is an absolute http(s) URL with a host."""
    if len(url) > URL_MAX_LENGTH or not _URL_CHARACTERS.fullmatch(url):
        raise InvalidError(_ODD_CHARACTER, where)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # Python's message quotes what stands before the path, a password too.
        raise InvalidError(_NO_HOST, where) from None
    if parts.scheme not in {"http", "https"}:
        msg = "a webhook's URL starts with http:// or https://"
        raise InvalidError(msg, where)
    host = parts.hostname or "%"
    if port == 0 or ("%" in host and ":" not in host):  # an IPv6 address may have a zone
        raise InvalidError(_NO_HOST, where)
    return parts


def check_headers(headers: dict[str, str], where: str = "$.headers") -> None:
    """Refuse headers that HTTP or this service reserves, and values that would break a request. Raises InvalidError."""
    if len(headers) > HEADERS_MAX:
        msg = f"a webhook has at most {HEADERS_MAX} headers"
        raise InvalidError(msg, where)
    seen: set[str] = set()
    for name, value in headers.items():
        lower = name.lower()
        if not _TOKEN.fullmatch(name) or lower in seen:
            msg = f"{name[:80]!r} is no header name, or stands there twice"
            raise InvalidError(msg, where)
        seen.add(lower)
        if lower in _RESERVED_HEADERS or lower.startswith(_RESERVED_PREFIXES):
            msg = f"the header {name!r} is set by the service itself"
            raise InvalidError(msg, f"{where}.{name}")
        if len(value) > HEADER_VALUE_MAX_LENGTH or (value and not _VISIBLE.fullmatch(value)):
            msg = f"a header's value is visible ASCII, at most {HEADER_VALUE_MAX_LENGTH} characters"
            raise InvalidError(msg, f"{where}.{name}")


def check_changeable(webhook: Webhook | None) -> None:
    """Refuse to change by API what the environment sets at every start. Raises ConflictError."""
    if webhook is not None and webhook.source == "environment":
        msg = "the environment sets this webhook: change WEBHOOK_GLOBAL_URL and its kin there, or remove them first"
        raise ConflictError(msg)


def check_address(address: Address) -> None:
    """Refuse an address under which no webhook may be set. Raises InvalidError."""
    if address.scope == "instance":
        check_instance(address.instance, where="instance")
    if address.name:
        check_name(address.name)


def check_name(name: str) -> None:
    """Refuse what cannot name one of several webhooks of a scope. Raises InvalidError."""
    if not _NAME.fullmatch(name):
        msg = "a webhook's name has 1 to 64 letters, digits, - and _"
        raise InvalidError(msg, "name")
    if name == _RESERVED_NAME:
        msg = f"no webhook can be named {name}: a POST to that path sends a test event"
        raise InvalidError(msg, "name")


def canonical_events(spellings: list[str], where: str = "$.events") -> tuple[str, ...]:
    """Return the canonical names of kinds in any spelling, each once, in the catalogue's order. Raises InvalidError."""
    wanted = set()
    for index, spelling in enumerate(spellings):
        kind = catalogue.find(spelling)
        if kind is None:
            msg = f"there is no kind {spelling[:80]!r}; the nearest is {catalogue.nearest(spelling)}"
            raise InvalidError(msg, f"{where}[{index}]")
        wanted.add(kind.name)
    return tuple(kind.name for kind in catalogue.KINDS if kind.name in wanted)


def split_userinfo(url: str) -> tuple[str, str]:
    """Return `url` without its user and password, and these (still percent-encoded) or an empty string."""
    head, mark, rest = url.partition("://")
    authority, _, _ = rest.partition("/")
    authority = authority.partition("?")[0].partition("#")[0]
    userinfo, at, _ = authority.rpartition("@")
    return (f"{head}{mark}{rest[len(userinfo) + 1 :]}", userinfo) if at else (url, "")


def join_userinfo(url: str, userinfo: str) -> str:
    """Undo `split_userinfo`."""
    return url.replace("://", f"://{userinfo}@", 1) if userinfo else url
