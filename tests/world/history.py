"""What happened in a world, line by line, in its own time."""

DAY_S = 86_400
HOUR_S = 3600
MINUTE_S = 60


class History:
    """Lines with the virtual time at which they were written. They are put into words only when somebody reads them."""

    def __init__(self) -> None:
        self._lines: list[tuple[float, str, tuple[object, ...]]] = []

    def __len__(self) -> int:
        return len(self._lines)

    def note(self, at_s: float, text: str, *values: object) -> None:
        """Add a line; `values` fill the %-marks of `text`, and must not change later."""
        self._lines.append((at_s, text, values))

    def lines(self, last: int | None = None) -> list[str]:
        """Return the last so many lines, or all of them."""
        lines = self._lines if last is None else self._lines[-last:]
        return [f"{moment(at_s)}  {text % values if values else text}" for at_s, text, values in lines]


def moment(at_s: float) -> str:
    """Return virtual seconds as days, hours, minutes, seconds and milliseconds."""
    whole, milliseconds = divmod(round(at_s * 1000), 1000)
    days, rest = divmod(whole, DAY_S)
    hours, rest = divmod(rest, HOUR_S)
    minutes, seconds = divmod(rest, MINUTE_S)
    return f"{days}d {hours:02}:{minutes:02}:{seconds:02}.{milliseconds:03}"
