"""What a seed stands for: settings, receivers, and the steps of a story in which everything may go wrong at once."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from outbox.domain.retrying import RetryPolicy
from tests.world.receivers import Behaviour, Flapping, Limited, Losing, Mixed, Refusing, Silent, Unreachable, Up

INSTANCES = ("loja01", "loja02")
KINDS = ("messages.upsert", "messages.update", "presence.update", "call")
CHATS = ("c1", "c2", "c3")
MIB = 1024 * 1024


class Step(Struct, frozen=True):
    """Something that happens at a moment of the story: `what` names a method of `Chaos`, which gets `values`."""

    at_s: float
    what: str
    values: tuple[Any, ...] = ()


class Plan(Struct, frozen=True):
    """All that a seed stands for; `config` are settings of the engine."""

    config: dict[str, Any]
    receivers: dict[str, Behaviour]
    steps: list[Step]


def draw(seed: int) -> Plan:
    """Return the plan of a seed."""
    return _Drawing(random.Random(f"plan {seed}")).plan()


class _Drawing:
    """Draws a plan."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._lasts_s: float = rng.choice((30, 600, 6 * 3600, 2 * 86_400))
        self._steps: list[Step] = []

    def plan(self) -> Plan:
        rng, lasts_s = self._rng, self._lasts_s
        config = self._config()
        names = ("alfa", "beta", "gama")[: rng.randint(1, 3)]
        receivers = {name: self._behaviour() for name in names}
        for address in (("", ""), *((instance, rng.choice(("", "n8n"))) for instance in INSTANCES)):
            self._step("webhook", (*address, *self._webhook(names)), at_s=0 if rng.random() < 0.7 else None)
            self._steps_of("webhook", 3, lambda address=address: (*address, *self._webhook(names)))  # type: ignore[misc]
        self._steps_of("delete", 1, lambda: (rng.choice(("", *INSTANCES)), rng.choice(("", "n8n"))))
        self._steps_of("post", 25, self._posting, least=3)
        self._steps_of("replay", 2, self._replay)
        self._steps_of("replay_one", 2, lambda: (rng.random(), rng.random() < 0.3))
        self._steps_of("cancel_replay", 1, lambda: (rng.random(),))
        self._steps_of("turn", 8, lambda: (rng.choice(names), self._behaviour()))
        self._steps_of("kill", 2)
        self._steps_of("kill_after", 2, lambda: (rng.randint(1, 40),))
        self._steps_of("stop", 1)
        self._steps_of("jump", 2, lambda: (rng.uniform(-1, 1) * rng.choice((0.5, 60, 7200, 200_000)),))
        self._steps_of("full_disk", 2, lambda: (rng.random() * min(lasts_s / 5, 600),))
        self._steps_of("slow_disk", 1, lambda: (rng.choice((0.01, 0.3)), rng.random() * min(lasts_s, 60)))
        self._steps_of("failing_sync", 1)
        return Plan(config, receivers, sorted(self._steps, key=lambda step: step.at_s))

    def _step(self, what: str, values: tuple[Any, ...], at_s: float | None = None) -> None:
        self._steps.append(Step(self._rng.random() * self._lasts_s if at_s is None else at_s, what, values))

    def _steps_of(self, what: str, most: int, values: Callable[[], tuple[Any, ...]] = tuple, least: int = 0) -> None:
        for _ in range(self._rng.randint(least, most)):
            self._step(what, values())

    def _config(self) -> dict[str, Any]:
        rng = self._rng
        # An open breaker probes by the schedule: one that never slows down is for short stories.
        initial_s = rng.choice((0.0 if self._lasts_s < 100 else 1.0, 0.5, 5.0, 60.0))
        steady = initial_s > self._lasts_s / 500
        return {
            "retry": RetryPolicy(
                initial_s=initial_s,
                max_s=max(initial_s, self._lasts_s / 300, rng.choice((10.0, 300.0, 3600.0, 21_600.0))),
                jitter=rng.choice((0.0, 0.2, 1.0)),
                exponential=not steady or rng.random() < 0.5,
                max_attempts=rng.choice((2, 6, 20)),
                max_age_s=rng.choice((1800.0, 86_400.0, 604_800.0)),
            ),
            "timeout_ms": rng.choice((1000, 30_000)),
            "idempotency_window_s": 30 * 86_400,  # which no clock here is set ahead by
            "delivery_bytes": rng.choice((1000, 256 * MIB)),
            "queue_bytes": rng.choice((3000, 256 * MIB)),
        }

    def _webhook(self, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """Return the receiver that a webhook is set to, and its settings."""
        rng = self._rng
        settings: dict[str, Any] = {"concurrency": rng.choice((1, 2, 8, 32))}
        if rng.random() < 0.3:
            settings["events"] = tuple(rng.sample(("MESSAGES_UPSERT", "MESSAGES_UPDATE", "PRESENCE_UPDATE", "CALL"), 2))
        if rng.random() < 0.2:
            settings["enabled"] = False
        if rng.random() < 0.2:
            settings["by_events"] = True
        if rng.random() < 0.5:
            settings["order"] = rng.choice(("none", "instance", "chat", "chat"))
        return rng.choice(names), settings

    def _posting(self) -> tuple[Any, ...]:
        """Return how many events, of which instance, kind and chat, how large, as a batch or not, with a key or not."""
        rng = self._rng
        event = (rng.choice(INSTANCES), rng.choice(KINDS), rng.choice(CHATS), rng.choice((0, 0, 0, 500, 3000)))
        return (rng.choice((1, 1, 1, 5, 20)), event, rng.random() < 0.5, rng.random() < 0.5)

    def _replay(self) -> tuple[Any, ...]:
        """Return to which instance's webhook, how many a second, and the rest of the filter."""
        rng = self._rng
        wanted: dict[str, Any] = {}
        if rng.random() < 0.5:
            wanted["instance"] = rng.choice(INSTANCES)
        if rng.random() < 0.3:
            wanted["kind"] = "MESSAGES_UPSERT"
        if rng.random() < 0.3:
            return (rng.choice(("", *INSTANCES)), rng.choice((None, 5.0)), {**wanted, "adds": True})
        if rng.random() < 0.5:
            wanted["state"] = rng.choice(("dead", "pending", "held", "waiting"))
        return ("-", rng.choice((None, 1.0, 5.0)), {**wanted, "acknowledged": rng.random() < 0.3})

    def _behaviour(self) -> Behaviour:
        """Return a behaviour; one that asks for patience asks for so much that it is not asked too often."""
        rng = self._rng
        patience_s = max(self._lasts_s / rng.choice((3, 10, 30)), 1.0)
        simple: Sequence[Behaviour] = (
            Up(),
            Up(slow_s=rng.choice((0.5, 20.0))),
            Up(status=500),
            Up(status=404),
            Up(status=410),
            Up(status=422),
            Up(status=429),
            Up(status=429, retry_after_s=patience_s),
            Up(status=503, retry_after_s=patience_s),
            Refusing(),
            Unreachable(),
            Silent(),
            Losing(),
        )
        other = rng.choice(simple)
        match rng.randrange(8):
            case 0:
                return Mixed((Up(), other, Losing()), (3, 2, 1))
            case 1:
                return Flapping((Up(), other), each_s=rng.choice((1.0, 60.0, 3600.0)))
            case 2:
                return Limited(parallel=rng.choice((1, 3)), refusal=Up(status=rng.choice((429, 503))))
            case 3:
                return Limited(per_s=rng.choice((1.0, 10.0)))
            case _:
                return other
