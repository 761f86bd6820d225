"""Numbers as a person reads them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_DASH = "–"


def size(number: float | None) -> str:
    """``737280000`` -> ``703 MiB``."""
    if number is None:
        return _DASH
    value, unit = float(number), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_UNITS[unit]}"


def count(number: float | None) -> str:
    """``1234567`` -> ``1.23 M``; small ones as they are."""
    if number is None:
        return _DASH
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.3g} {unit}"
    return f"{number:,.0f}" if number == int(number) or abs(number) >= 100 else f"{number:.2g}"


def seconds(number: float | None) -> str:
    """``0.0123`` -> ``12 ms``; ``75`` -> ``1 min 15 s``."""
    if number is None:
        return _DASH
    if number < 0.0995:
        return f"{number * 1000:.0f} ms" if number == 0 or number >= 0.00095 else "< 1 ms"
    if number < 9.95:
        return f"{number:.2g} s"
    if number < 59.5:
        return f"{number:.0f} s"
    minutes, rest = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days"


def percent(number: float | None) -> str:
    """``0.634`` -> ``63 %``."""
    return _DASH if number is None else f"{number * 100:.0f} %"


def money(number: float | None) -> str:
    """Without a currency: the tower file does not name one."""
    return _DASH if not number else f"{number:,.2f}" if number >= 0.01 else f"{number:.4f}"


def plain(value: object) -> str:
    """A setting as a person writes it: ``0.0`` -> ``0``."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def plain_number(value: float) -> str:
    """For a field: ``5.0`` -> ``5``."""
    return str(int(value)) if value == int(value) else str(value)


_LIMITS = {
    "requests_per_minute": "{} requests a minute",
    "tokens_per_minute": "{} tokens a minute",
    "tokens_per_day": "{} tokens a day",
    "images_per_day": "{} images a day",
    "money_per_month": "a budget of {} a month",
    "parallel": "{} at a time",
}


def limits(found: Mapping[str, float] | None) -> list[str]:
    """``{"tokens_per_day": 2000000}`` -> ``2 M tokens a day``."""
    return [
        _LIMITS[name].format(f"{v:,.2f}" if name.startswith("money") else count(v)) for name, v in (found or {}).items()
    ]


def day(at: float | None) -> str:
    """Seconds since the epoch as a UTC date."""
    return _DASH if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def moment(at: float | None) -> str:
    """Seconds since the epoch as a UTC date and time."""
    return _DASH if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def clock(at: float) -> str:
    """Seconds since the epoch as a UTC time of day."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def ago(at: float | None, now: float) -> str:
    """``3 min ago``."""
    if at is None:
        return _DASH
    gone = max(0.0, now - at)
    if gone < 60:
        return f"{gone:.0f} s ago"
    if gone < 3600:
        return f"{gone // 60:.0f} min ago"
    return f"{gone // 3600:.0f} h ago" if gone < 172800 else f"{gone // 86400:.0f} days ago"
