"""Held time: how long a webhook was disabled or suspended. It does not count for the age of its deliveries."""

INTERVALS_MAX = 50

Interval = tuple[int, int]
"""From when and until when, in milliseconds since the epoch; until 0 means: still."""


def held_after(held: tuple[Interval, ...], at_ms: int, *, holding: bool) -> tuple[Interval, ...]:
    """Return the intervals once the webhook is held, or no longer held, from `at_ms` on.

    They follow each other and never overlap, even where a clock goes back.
    """
    open_now = bool(held) and held[-1][1] == 0
    if holding == open_now:
        return held
    if holding:
        held = (*held, (max(at_ms, held[-1][1]) if held else at_ms, 0))
    else:
        start = held[-1][0]
        held = (*held[:-1], (start, max(at_ms, start + 1)))
    if len(held) > INTERVALS_MAX:
        # What is merged counts as held throughout: deliveries live a little longer, none dies too early.
        held = ((held[0][0], held[1][1]), *held[2:])
    return held


def expires_ms(held: tuple[Interval, ...], since_ms: int, age_ms: int) -> int:
    """Return the moment when what is `since_ms` old has reached `age_ms`, held time not counted.

    While it is held that moment is not known yet: then it is the one that holds if the holding ended at once.
    """
    left, moment = age_ms, since_ms
    for start, end in held:
        counted = max(start - moment, 0)
        if counted >= left or not end:
            break
        if end > moment:
            left -= counted
            moment = end
    return moment + left


def cutoff_ms(held: tuple[Interval, ...], now_ms: int, age_ms: int) -> int:
    """Return the moment since which `age_ms` have passed that were not held: what is older has expired."""
    left, moment = age_ms, now_ms
    for start, end in reversed(held):
        counted = max(moment - (end or moment), 0)
        if counted >= left:
            break
        left -= counted
        moment = min(start, moment)
    return moment - left
