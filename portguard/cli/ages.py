"""How long something has lasted, as short as a column of a table wants it."""

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def written_age(seconds: float) -> str:
    """The two largest units, rounded down: "12s", "3m04s", "2h05m", "12d03h"."""
    whole = max(0, int(seconds))
    for unit_s, name, smaller_s, smaller in ((_DAY_S, "d", _HOUR_S, "h"), (_HOUR_S, "h", _MINUTE_S, "m"),
                                             (_MINUTE_S, "m", 1, "s")):  # fmt: skip
        if whole >= unit_s:
            return f"{whole // unit_s}{name}{whole % unit_s // smaller_s:02}{smaller}"
    return f"{whole}s"
