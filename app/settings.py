"""Settings from the environment and a `.env` file: the only reader of the environment.

Every variable stands in one table, with what it takes and its default; `scripts/outbox settings` prints that table. A
wrong value stops the start, naming the variable and what it takes.
"""

import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import dotenv
from msgspec import Struct

from outbox.config import EngineConfig, GlobalWebhook
from outbox.domain import catalogue
from outbox.domain.addresses import OPERATORS_OWN, AddressPolicy, parse_networks
from outbox.domain.errors import CannotStartError, InvalidError
from outbox.domain.retrying import RetryPolicy
from outbox.domain.webhooks import check_url
from outbox.folders import make_folder, sync_folder

ROOT = Path(__file__).resolve().parent.parent
MASK = "***"

_EVENTS_PREFIX = "WEBHOOK_EVENTS_"
_OWN_PREFIX = "OUTBOX_"
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_UNITS_B = {"": 1, "b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_AMOUNT_MAX = 2.0**53  # far beyond any size or time, and exact
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


class Variable(Struct, frozen=True):
    """One variable: how its text is read, what it is without one, what it takes, whether it is a secret."""

    name: str
    read: Callable[[str], Any]
    default: str
    takes: str
    secret: bool = False


class Value(Struct, frozen=True):
    """What a variable has come to: its text, its meaning, and where it came from."""

    variable: Variable
    text: str
    meaning: Any
    source: str


class _RefusedError(ValueError):
    """A value that has the right form, with a reason for people; Python's own words are for programmers."""


def _boolean(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    return read


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 10 * 365 * 86_400:
        raise ValueError(text)
    return number


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError(text)
    return number


def _amount(units: Mapping[str, int]) -> Callable[[str], int]:
    def read(text: str) -> int:
        found = _AMOUNT.fullmatch(text.strip().lower())
        if found is None:
            raise ValueError(text)
        number = float(found[1]) * units[found[2]]
        if number > _AMOUNT_MAX:
            raise ValueError(text)
        return int(number)

    return read


def read_duration(text: str) -> int:
    """Return the seconds of a duration such as 90, 30m, 24h or 7d. Raises ValueError."""
    return _amount(_UNITS_S)(text)


def _age(text: str) -> int:
    seconds = read_duration(text)
    if seconds < 1:
        raise ValueError(text)
    return seconds


def _choice(*words: str) -> Callable[[str], str]:
    return dict(zip(words, words, strict=True)).__getitem__


def _statuses(text: str) -> frozenset[int]:
    read = _whole(100, 599)
    return frozenset(read(part) for part in text.split(",") if part.strip())


def _database(text: str) -> Path:
    scheme, mark, rest = text.partition("://")
    if scheme.startswith("postgres"):
        msg = "PostgreSQL is not supported by this release"
        raise _RefusedError(msg)
    if scheme != "sqlite" or not mark or not rest.startswith("/") or rest in {"/", "//"}:
        raise ValueError(text)
    return ROOT / rest[1:]


def _secret(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{8,256}", text):
        raise ValueError
    return text


def _path_secret(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.~-]{8,256}", text):
        raise ValueError
    return text


def _url(text: str) -> str:
    parts = check_url(text, "the URL")
    refusal = OPERATORS_OWN.refusal_of_host(parts.hostname or "")
    if refusal:
        raise _RefusedError(refusal)
    return text


_BOOLEAN = "true or false"
_SECONDS = "seconds, fractions allowed"
_DURATION = "a duration such as 90, 30m, 24h or 7d (plain numbers are seconds)"
_BYTES = "a size such as 1048576, 64MiB or 1GB (plain numbers are bytes)"

VARIABLES: tuple[Variable, ...] = (
    Variable("OUTBOX_HOST", str, "127.0.0.1", "the address to listen on"),
    Variable("OUTBOX_PORT", _whole(0, 65535), "8090", "a port from 0 (any free one) to 65535"),
    Variable("OUTBOX_DATABASE_URL", _database, "sqlite:///data/outbox.db", "sqlite:///relative or sqlite:////absolute"),
    Variable("OUTBOX_API_KEY", _secret, "", "8 to 256 visible ASCII characters", secret=True),
    Variable("AUTHENTICATION_API_KEY", _secret, "", "as OUTBOX_API_KEY, which goes first", secret=True),
    Variable("OUTBOX_INGEST_TOKEN", _path_secret, "", "8 to 256 letters, digits and any of _ . ~ -", secret=True),
    Variable("OUTBOX_ALLOWED_NETWORKS", parse_networks, "", "networks such as 10.0.0.0/8, by commas, or `private`"),
    Variable("OUTBOX_ROUTE_STYLE", _choice("documented", "evolution"), "documented", "documented or evolution"),
    Variable("OUTBOX_IDEMPOTENCY_WINDOW", _amount(_UNITS_S), "24h", _DURATION),
    Variable("OUTBOX_MAX_BODY_BYTES", _amount(_UNITS_B), "136MiB", _BYTES),
    Variable("OUTBOX_INGEST_BYTES", _amount(_UNITS_B), "256MiB", _BYTES),
    Variable("OUTBOX_QUEUE_BYTES", _amount(_UNITS_B), "256MiB", _BYTES),
    Variable("OUTBOX_DELIVERY_BYTES", _amount(_UNITS_B), "256MiB", _BYTES),
    Variable("OUTBOX_LOG_LEVEL", _choice("debug", "info", "warning", "error"), "info", "debug, info, warning or error"),
    Variable("OUTBOX_LOG_FORMAT", _choice("auto", "json", "console"), "auto", "auto, json or console"),
    Variable("WEBHOOK_GLOBAL_ENABLED", _boolean, "false", _BOOLEAN),
    Variable("WEBHOOK_GLOBAL_URL", _url, "", "an http:// or https:// URL", secret=True),
    Variable("WEBHOOK_GLOBAL_WEBHOOK_BY_EVENTS", _boolean, "false", _BOOLEAN),
    Variable("WEBHOOK_REQUEST_TIMEOUT_MS", _whole(1, 600_000), "30000", "milliseconds, 1 to 600000"),
    Variable("WEBHOOK_RETRY_MAX_ATTEMPTS", _whole(1, 1000), "20", "1 to 1000, the first POST included"),
    Variable("WEBHOOK_RETRY_INITIAL_DELAY_SECONDS", _seconds, "5", _SECONDS),
    Variable("WEBHOOK_RETRY_MAX_DELAY_SECONDS", _seconds, "21600", _SECONDS),
    Variable("WEBHOOK_RETRY_JITTER_FACTOR", _fraction, "0.2", "a number from 0 to 1"),
    Variable("WEBHOOK_RETRY_USE_EXPONENTIAL_BACKOFF", _boolean, "true", _BOOLEAN),
    Variable("OUTBOX_MAX_PENDING_AGE", _age, "7d", f"{_DURATION}, at least a second"),
    Variable("WEBHOOK_RETRY_NON_RETRYABLE_STATUS_CODES", _statuses, "400,413,422", "statuses by commas: 400,422"),
)  # fmt: skip


class Settings(Struct, frozen=True):
    """All settings of the service; `values` holds them by name, with their sources, for printing."""

    values: dict[str, Value]
    kinds: dict[str, Value]
    warnings: list[str]

    def __getitem__(self, name: str) -> Any:
        """Return what the variable `name` means."""
        return self.values[name].meaning

    @property
    def database(self) -> Path:
        """The SQLite file."""
        path: Path = self["OUTBOX_DATABASE_URL"]
        return path

    @property
    def api_key(self) -> str:
        """The API key."""
        return str(self["OUTBOX_API_KEY"] or self["AUTHENTICATION_API_KEY"])

    @property
    def ingest_token(self) -> str:
        """The token that Evolution API servers have in their webhook's path."""
        return str(self["OUTBOX_INGEST_TOKEN"])

    def engine_config(self) -> EngineConfig:
        """Return what the engine needs of them."""
        return EngineConfig(
            database=self.database,
            retry=RetryPolicy(
                initial_s=self["WEBHOOK_RETRY_INITIAL_DELAY_SECONDS"],
                max_s=self["WEBHOOK_RETRY_MAX_DELAY_SECONDS"],
                jitter=self["WEBHOOK_RETRY_JITTER_FACTOR"],
                exponential=self["WEBHOOK_RETRY_USE_EXPONENTIAL_BACKOFF"],
                max_age_s=self["OUTBOX_MAX_PENDING_AGE"],
                max_attempts=self["WEBHOOK_RETRY_MAX_ATTEMPTS"],
                non_retryable=self["WEBHOOK_RETRY_NON_RETRYABLE_STATUS_CODES"],
            ),
            timeout_ms=self["WEBHOOK_REQUEST_TIMEOUT_MS"],
            route_style=self["OUTBOX_ROUTE_STYLE"],
            addresses=AddressPolicy(self["OUTBOX_ALLOWED_NETWORKS"]),
            global_webhook=self._global_webhook(),
            idempotency_window_s=self["OUTBOX_IDEMPOTENCY_WINDOW"],
            queue_bytes=self["OUTBOX_QUEUE_BYTES"],
            delivery_bytes=self["OUTBOX_DELIVERY_BYTES"],
        )

    def _global_webhook(self) -> GlobalWebhook | None:
        url = self["WEBHOOK_GLOBAL_URL"]
        if not url:
            return None
        wanted = {name for name, value in self.kinds.items() if value.meaning}
        return GlobalWebhook(
            url=url,
            # Kinds are named, and none is on: nothing may go out, which an empty list of events would not say.
            enabled=self["WEBHOOK_GLOBAL_ENABLED"] and (bool(wanted) or not self.kinds),
            by_events=self["WEBHOOK_GLOBAL_WEBHOOK_BY_EVENTS"],
            events=tuple(kind.name for kind in catalogue.KINDS if kind.name in wanted),
        )


def load_settings(environment: Mapping[str, str] | None = None, env_file: Path | None = None) -> Settings:
    """Read the environment, then the `.env` file for what it does not say. Raises CannotStartError."""
    outer = os.environ if environment is None else environment
    inner = _env_file(env_file or ROOT / ".env")
    said = {name: (text, ".env") for name, text in inner.items() if text}
    said |= {name: (text, "environment") for name, text in outer.items() if text}
    values = {variable.name: _value(variable, said.get(variable.name)) for variable in VARIABLES}
    kinds, foreign = _kinds(said)
    # Other names of WEBHOOK_ may be Evolution's own; those of OUTBOX_ are misspelt.
    foreign += [name for name in said if name.startswith(_OWN_PREFIX) and name not in values]
    settings = Settings(values, kinds, [f"{name} is not known here and ignored" for name in sorted(foreign)])
    _check(settings)
    return settings


def _env_file(path: Path) -> dict[str, str | None]:
    try:
        return dotenv.dotenv_values(path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        msg = f"cannot read the settings in {path}: {why}"
        raise CannotStartError(msg) from error


def _value(variable: Variable, said: tuple[str, str] | None) -> Value:
    text, source = said or (variable.default, "default")
    if not text:
        return Value(variable, "", () if variable.read is parse_networks else None, source)
    try:
        return Value(variable, text, variable.read(text.strip()), source)
    except (ValueError, KeyError, InvalidError) as error:
        shown = MASK if variable.secret else repr(text)
        why = f" ({error})" if isinstance(error, InvalidError | _RefusedError) else ""
        msg = f"{variable.name} is {shown}, but takes {variable.takes}{why}"
        raise CannotStartError(msg) from error


def _kinds(said: Mapping[str, tuple[str, str]]) -> tuple[dict[str, Value], list[str]]:
    """Return the WEBHOOK_EVENTS_<KIND> switches by canonical kind, and the names that are of none."""
    kinds: dict[str, Value] = {}
    foreign = []
    for name in sorted(said):
        if not name.startswith(_EVENTS_PREFIX):
            continue
        kind = catalogue.find(name.removeprefix(_EVENTS_PREFIX))
        if kind is None:
            foreign.append(name)
            continue
        value = _value(Variable(name, _boolean, "", _BOOLEAN), said[name])
        if kind.name not in kinds or value.meaning:
            kinds[kind.name] = value
    return kinds, foreign


def _check(settings: Settings) -> None:
    if settings["WEBHOOK_GLOBAL_ENABLED"] and not settings["WEBHOOK_GLOBAL_URL"]:
        msg = "WEBHOOK_GLOBAL_ENABLED is true, but WEBHOOK_GLOBAL_URL is not set"
        raise CannotStartError(msg)
    if settings["OUTBOX_MAX_BODY_BYTES"] < 1:
        msg = "OUTBOX_MAX_BODY_BYTES is 0, but takes at least 1 byte"
        raise CannotStartError(msg)


def with_keys(settings: Settings) -> Settings:
    """Return the settings with API key and ingest token: those given, or made once and kept beside the database.

    Raises CannotStartError, also when the global webhook would make the service post to itself.
    """
    values = dict(settings.values)
    for name, file in (("OUTBOX_API_KEY", "api-key"), ("OUTBOX_INGEST_TOKEN", "ingest-token")):
        if settings[name] or (name == "OUTBOX_API_KEY" and settings["AUTHENTICATION_API_KEY"]):
            continue
        path = settings.database.parent / file
        text = _kept_secret(path)
        values[name] = Value(values[name].variable, text, text, str(path))
    complete = Settings(values, settings.kinds, settings.warnings)
    url = complete["WEBHOOK_GLOBAL_URL"]
    if url and complete.ingest_token in unquote(urlsplit(url).path):
        msg = "WEBHOOK_GLOBAL_URL holds this service's own ingest token: it would post to itself (a shared .env file?)"
        raise CannotStartError(msg)
    return complete


def _kept_secret(path: Path) -> str:
    try:
        make_folder(path.parent)
        if not path.exists():
            _make_secret(path)
        return _path_secret(path.read_text().strip())
    except OSError as error:
        msg = f"cannot keep a key in {path}: {error.strerror}"
        raise CannotStartError(msg) from error
    except ValueError as error:
        msg = f"{path} holds no usable key: delete it, and a new one is made"
        raise CannotStartError(msg) from error


def _make_secret(path: Path) -> None:
    """Make a key that appears whole or not at all, outlasts a power cut, and only if no other process was first."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    sync_folder(path.parent)
