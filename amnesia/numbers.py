"""Numbers as text for readers."""

from __future__ import annotations

_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def signed(value: float, digits: int = 2) -> str:
    """A number with a true minus sign, and none for zero; from a million on as `positive` writes it."""
    text = f"{value:z.{digits}f}" if abs(value) < 1e6 else f"{'-' * (value < 0)}{positive(abs(value))}"
    return text.replace("-", "−")


def plus(value: float, digits: int = 1) -> str:
    """A number with its sign, also where it is positive or zero."""
    return f"{value:+z.{digits}f}".replace("-", "−")


def short(value: float, digits: int = 6) -> str:
    """A number with as few digits as it needs, `digits` at most, and a true minus sign."""
    return f"{value:.{digits}g}".replace("-", "−")


def positive(value: float, digits: int = 1) -> str:
    """A positive number of any size: 12.3, with `digits` after the point, then 4,560, 7.8 × 10¹²."""
    if value < 1000:
        return f"{value:.{digits}f}"
    if value < 1e6:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}"


def share(value: float, digits: int = 0) -> str:
    """A share of 1 in percent, with `digits` after the point."""
    return f"{100 * value:.{digits}f} %"


def change(ratio: float) -> str:
    """A ratio as the change that it is: +1.1 %, +0.0 % for hardly any, or 3.4 times from a doubling on."""
    return f"{positive(ratio)} times" if ratio >= 2 else f"{100 * (ratio - 1):+z.1f} %".replace("-", "−")


def flat(text: str, most: int = 300) -> str:
    """A text on one line; what is cut off is shown by an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def tried(n: int) -> str:
    """How many edits were measured for the one that was taken; one that is given is measured alone."""
    return "the only one tried" if n == 1 else f"the best of {n:,} tried"
