import json
from pathlib import Path

import pytest

from app.settings import MASK, ROOT, VARIABLES, Settings, load_settings, with_keys
from outbox.domain import catalogue
from outbox.domain.errors import CannotStartError

NO_FILE = Path("/nowhere/.env")
URL = "https://hooks.example.com/evolution"
HUGE = "9" * 400

WRONG: dict[str, list[str]] = {
    "OUTBOX_HOST": [],
    "OUTBOX_PORT": ["eighty", "-1", "65536", "80.5"],
    "OUTBOX_DATABASE_URL": [
        "outbox.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:outbox.db",
        "mysql:///a",
        "postgresql://h/d",
    ],
    "OUTBOX_API_KEY": ["short", "with space in it", "ação-ação-ação", "x" * 257],
    "AUTHENTICATION_API_KEY": ["short", "x" * 257],
    "OUTBOX_INGEST_TOKEN": ["short", "with/slash/in/it", "percent%20percent", "x" * 257],
    "OUTBOX_ALLOWED_NETWORKS": ["everything", "10.0.0.0/33", "10.0.0.1/8", "private,nowhere"],
    "OUTBOX_ROUTE_STYLE": ["Documented", "v2"],
    "OUTBOX_IDEMPOTENCY_WINDOW": ["a day", "24 hours", "-1", "1w", HUGE],
    "OUTBOX_MAX_BODY_BYTES": ["much", "-1", "1TB", "0", HUGE],
    "OUTBOX_INGEST_BYTES": ["much", "-1", HUGE],
    "OUTBOX_QUEUE_BYTES": ["much", "-1", "1.5.5", HUGE],
    "OUTBOX_DELIVERY_BYTES": ["much", "-1", HUGE],
    "OUTBOX_LOG_LEVEL": ["verbose", "INFO"],
    "OUTBOX_LOG_FORMAT": ["xml"],
    "WEBHOOK_GLOBAL_ENABLED": ["yes", "2"],
    "WEBHOOK_GLOBAL_URL": ["ftp://example.com", "example.com", "http://", "http://169.254.169.254/", "http://u:p@"],
    "WEBHOOK_GLOBAL_WEBHOOK_BY_EVENTS": ["maybe"],
    "WEBHOOK_REQUEST_TIMEOUT_MS": ["0", "600001", "1.5", "fast"],
    "WEBHOOK_RETRY_MAX_ATTEMPTS": ["0", "1001", "many"],
    "WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": ["-1", "nan", "inf", "soon", "1e12"],
    "WEBHOOK_RETRY_MAX_DELAY_SECONDS": ["-0.1", "nan", "inf"],
    "WEBHOOK_RETRY_JITTER_FACTOR": ["-0.1", "1.1", "nan"],
    "WEBHOOK_RETRY_USE_EXPONENTIAL_BACKOFF": ["exponential"],
    "OUTBOX_MAX_PENDING_AGE": ["a week", "-1", "0", "0.9s", "1w", HUGE],
    "WEBHOOK_RETRY_NON_RETRYABLE_STATUS_CODES": ["400;422", "99", "600", "4xx"],
}

RIGHT: dict[str, list[tuple[str, object]]] = {
    "OUTBOX_PORT": [("0", 0), ("65535", 65_535), (" 8091 ", 8091)],
    "OUTBOX_DATABASE_URL": [
        ("sqlite:////var/lib/o.db", Path("/var/lib/o.db")),
        ("sqlite:///x/o.db", ROOT / "x" / "o.db"),
    ],
    "OUTBOX_ROUTE_STYLE": [("evolution", "evolution")],
    "OUTBOX_IDEMPOTENCY_WINDOW": [
        ("90", 90),
        ("30m", 1800),
        ("24h", 86_400),
        ("7d", 604_800),
        ("0", 0),
        ("1.5h", 5400),
    ],
    "OUTBOX_MAX_BODY_BYTES": [("1048576", 1024**2), ("64MiB", 64 * 1024**2), ("1GB", 10**9), ("2 kib", 2048)],
    "WEBHOOK_GLOBAL_WEBHOOK_BY_EVENTS": [("true", True), ("FALSE", False), ("1", True), ("0", False)],
    "WEBHOOK_REQUEST_TIMEOUT_MS": [("1", 1), ("600000", 600_000)],
    "WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": [("0", 0.0), ("0.25", 0.25)],
    "WEBHOOK_RETRY_JITTER_FACTOR": [("0", 0.0), ("1", 1.0)],
    "OUTBOX_MAX_PENDING_AGE": [("1s", 1), ("7d", 604_800), ("90m", 5400)],
    "WEBHOOK_RETRY_NON_RETRYABLE_STATUS_CODES": [("400, 410,422", frozenset({400, 410, 422}))],
}


def load(**environment: str) -> Settings:
    """Load settings from these variables only."""
    return load_settings(environment, NO_FILE)


def test_every_variable_has_wrong_values_to_try() -> None:
    """No variable can be added without saying here what it refuses."""
    assert [variable.name for variable in VARIABLES] == list(WRONG)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_a_wrong_value_is_refused(name: str, text: str) -> None:
    """The message names the variable and what it takes, and never shows the value of a secret."""
    variable = next(variable for variable in VARIABLES if variable.name == name)
    with pytest.raises(CannotStartError) as caught:
        load(**{name: text})
    assert caught.value.detail.startswith(f"{name} is ")
    assert "takes " in caught.value.detail
    if variable.secret:
        assert MASK in caught.value.detail
        assert text not in caught.value.detail.replace(variable.takes, "")


@pytest.mark.parametrize(
    ("name", "text", "meaning"), [(name, text, meaning) for name, pairs in RIGHT.items() for text, meaning in pairs]
)
def test_a_right_value_is_understood(name: str, text: str, meaning: object) -> None:
    """Units, spaces and the spellings of true and false are read as documented."""
    assert load(**{name: text})[name] == meaning


def test_defaults_are_the_documented_ones() -> None:
    """Without any variable the service has the limits and the schedule that the documentation names."""
    config = load().engine_config()
    assert config.database == ROOT / "data" / "outbox.db"
    retry = config.retry
    assert (retry.initial_s, retry.max_s, retry.jitter, retry.exponential, retry.max_attempts) == (
        5,
        21600,
        0.2,
        True,
        20,
    )
    assert retry.non_retryable == {400, 413, 422}
    assert (config.timeout_ms, config.idempotency_window_s, config.route_style) == (30_000, 86_400, "documented")
    assert config.global_webhook is None
    assert load()["OUTBOX_MAX_BODY_BYTES"] == 136 * 1024 * 1024


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    """A `.env` file says what the environment does not; an empty variable says nothing; sources are remembered."""
    file = tmp_path / ".env"
    file.write_text(
        'OUTBOX_PORT=8100\nOUTBOX_HOST="::1"  # local\nexport OUTBOX_LOG_LEVEL=debug\nWEBHOOK_EVENTS_CALL=true\n'
    )
    settings = load_settings({"OUTBOX_PORT": "8200", "OUTBOX_LOG_LEVEL": ""}, file)
    assert (settings["OUTBOX_PORT"], settings.values["OUTBOX_PORT"].source) == (8200, "environment")
    assert (settings["OUTBOX_HOST"], settings.values["OUTBOX_HOST"].source) == ("::1", ".env")
    assert (settings["OUTBOX_LOG_LEVEL"], settings.values["OUTBOX_LOG_LEVEL"].source) == ("debug", ".env")
    assert settings.values["OUTBOX_ROUTE_STYLE"].source == "default"
    assert settings.kinds["CALL"].source == ".env"


@pytest.mark.parametrize("content", ["OUTBOX_PORT=8100 ação".encode("latin-1"), b"\xff\xfeO\0"])
def test_an_env_file_that_is_no_text_stops_the_start(tmp_path: Path, content: bytes) -> None:
    """A `.env` file in another encoding is refused with its path."""
    file = tmp_path / ".env"
    file.write_bytes(content)
    with pytest.raises(CannotStartError, match=r"\.env"):
        load_settings({}, file)


def test_either_api_key_will_do_and_ours_goes_first() -> None:
    """AUTHENTICATION_API_KEY, Evolution's own name, is used where OUTBOX_API_KEY is not set."""
    assert load(AUTHENTICATION_API_KEY="evolutions-key").api_key == "evolutions-key"
    assert load(AUTHENTICATION_API_KEY="evolutions-key", OUTBOX_API_KEY="our-own-key").api_key == "our-own-key"


def test_keys_are_made_once_and_kept(tmp_path: Path) -> None:
    """Without keys in the environment they are made beside the database, readable by the owner only, and stay."""
    database = f"sqlite:///{tmp_path / 'deep' / 'outbox.db'}"
    first = with_keys(load(OUTBOX_DATABASE_URL=database))
    second = with_keys(load(OUTBOX_DATABASE_URL=database))
    assert (first.api_key, first.ingest_token) == (second.api_key, second.ingest_token)
    assert first.api_key != first.ingest_token
    assert min(len(first.api_key), len(first.ingest_token)) >= 32
    for file in ("api-key", "ingest-token"):
        assert (tmp_path / "deep" / file).stat().st_mode & 0o777 == 0o600
    assert first.values["OUTBOX_API_KEY"].source == str(tmp_path / "deep" / "api-key")


def test_no_key_is_made_where_one_is_given(tmp_path: Path) -> None:
    """Keys from the environment are used as they are, and no file is written."""
    database = f"sqlite:///{tmp_path / 'outbox.db'}"
    with_keys(
        load(OUTBOX_DATABASE_URL=database, AUTHENTICATION_API_KEY="evolutions-key", OUTBOX_INGEST_TOKEN="our-token")
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "short\n", "two\nlines of it\n"])
def test_a_damaged_key_file_stops_the_start(tmp_path: Path, content: str) -> None:
    """A kept key that cannot be one is named, with what to do."""
    (tmp_path / "api-key").write_text(content)
    with pytest.raises(CannotStartError, match=r"api-key holds no usable key: delete it"):
        with_keys(load(OUTBOX_DATABASE_URL=f"sqlite:///{tmp_path / 'outbox.db'}"))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8090/ingest/our-own-token",
        "http://outbox/ingest/our-own-token/messages-upsert",
        "http://outbox/ingest/our%2Down%2dtoken",
    ],
)
def test_a_global_url_with_our_own_token_is_refused(url: str) -> None:
    """A `.env` file shared with the server would make the service post to itself."""
    settings = load(OUTBOX_API_KEY="our-own-key", OUTBOX_INGEST_TOKEN="our-own-token", WEBHOOK_GLOBAL_URL=url)
    with pytest.raises(CannotStartError, match="own ingest token") as caught:
        with_keys(settings)
    assert "our-own-token" not in caught.value.detail


def global_events(**switches: str) -> tuple[bool, tuple[str, ...]]:
    """Return whether the global webhook is on, and its kinds, with these WEBHOOK_EVENTS_ switches."""
    switched = {f"WEBHOOK_EVENTS_{name}": text for name, text in switches.items()}
    webhook = load(WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=URL, **switched).engine_config().global_webhook
    assert webhook is not None
    return webhook.enabled, webhook.events


def test_switches_of_kinds() -> None:
    """None set: all kinds. Any set: exactly the true ones, and with none of them true the webhook is off."""
    assert global_events() == (True, ())
    assert global_events(CALL="") == (True, ())
    assert global_events(MESSAGES_UPSERT="true", CALL="false") == (True, ("MESSAGES_UPSERT",))
    assert global_events(CALL="true", MESSAGES_UPSERT="1") == (True, ("MESSAGES_UPSERT", "CALL"))
    assert global_events(MESSAGES_UPSERT="false") == (False, ())


@pytest.mark.parametrize("kind", [kind for kind in catalogue.KINDS if kind.documented], ids=lambda kind: kind.name)
def test_every_documented_kind_has_its_switch(kind: catalogue.Kind) -> None:
    """WEBHOOK_EVENTS_<KIND> takes every documented name."""
    assert global_events(**{kind.name: "true"}) == (True, (kind.name,))


def test_aliases_of_switches() -> None:
    """The spellings of Evolution's own settings mean the same kinds; one true spelling is enough."""
    assert global_events(GROUP_UPDATE="true") == (True, ("GROUPS_UPDATE",))
    assert global_events(NEW_JWT_TOKEN="true") == (True, ("NEW_TOKEN",))
    assert global_events(GROUP_UPDATE="true", GROUPS_UPDATE="false") == (True, ("GROUPS_UPDATE",))
    assert global_events(GROUP_UPDATE="false", GROUPS_UPDATE="true") == (True, ("GROUPS_UPDATE",))


def test_unknown_switches_are_warned_about() -> None:
    """Evolution's names that are not ours, such as WEBHOOK_EVENTS_ERRORS, are no error and change nothing."""
    settings = load(WEBHOOK_EVENTS_ERRORS="true", WEBHOOK_EVENTS_ERRORS_WEBHOOK="https://x", WEBHOOK_GLOBAL_URL=URL)
    assert [warning.split()[0] for warning in settings.warnings] == [
        "WEBHOOK_EVENTS_ERRORS",
        "WEBHOOK_EVENTS_ERRORS_WEBHOOK",
    ]
    assert not settings.kinds


def test_a_wrong_switch_is_refused() -> None:
    """A switch that is neither true nor false names itself."""
    with pytest.raises(CannotStartError, match=r"WEBHOOK_EVENTS_CALL is 'perhaps', but takes true or false"):
        load(WEBHOOK_EVENTS_CALL="perhaps")


def test_a_global_webhook_without_a_url_is_refused() -> None:
    """Enabled without a URL is a mistake, named with both variables; disabled with a URL is fine."""
    with pytest.raises(CannotStartError, match=r"WEBHOOK_GLOBAL_ENABLED .* WEBHOOK_GLOBAL_URL"):
        load(WEBHOOK_GLOBAL_ENABLED="true")
    webhook = load(WEBHOOK_GLOBAL_URL=URL).engine_config().global_webhook
    assert webhook is not None
    assert not webhook.enabled


def test_the_table_is_complete() -> None:
    """Every variable says what it takes, and its default is one of those values."""
    settings = load()
    assert json.loads(json.dumps([variable.takes for variable in VARIABLES]))
    for variable in VARIABLES:
        assert variable.takes
        assert settings.values[variable.name].text == variable.default
