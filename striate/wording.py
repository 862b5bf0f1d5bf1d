"""Format numbers, intervals and counts, in one way on the page, the terminal and model cards."""

import math
from collections.abc import Iterable

MINUS = "−"
PERPLEXITY = "perplexity"


def percent(share: float, digits: int = 1) -> str:
    """Return a share from 0 to 1 as `64.5%`."""
    return f"{100 * share:.{digits}f}%"


def signed(value: float, digits: int = 1) -> str:
    """Return `+6.1`, `−0.4` or `0.0`, with a true minus sign."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def points(difference: float, metric: str = "") -> str:
    """Return a difference of scores in percentage points; of perplexity, given in nats, its change in percent."""
    return f"{_grown(difference)}%" if metric == PERPLEXITY else f"{signed(100 * difference)} points"


def interval(span_text: str, why_none: str) -> str:
    """Return `95% interval +4.0 to +8.2`, or that there is none and why."""
    return f"95% interval {span_text}" if span_text else f"no 95% interval: {why_none or 'it was not measured'}"


def span(low: float | None, high: float | None, metric: str = "") -> str:
    """Return the interval of a difference as `+4.0 to +8.2`, of perplexity in percent; nothing where there is none."""
    if low is None or high is None:
        return ""
    if metric == PERPLEXITY:
        return f"{_grown(low)}% to {_grown(high)}%"
    return f"{signed(100 * low)} to {signed(100 * high)}"


def score(value: float, metric: str = "") -> str:
    """Return a score in percent, or of a perplexity score, which is in nats a token, the perplexity."""
    return perplexity(value) if metric == PERPLEXITY else percent(value)


def perplexity(nats: float) -> str:
    """Return the perplexity of `nats` a token, with three significant digits."""
    return plain_number(perplexity_of(nats))


def perplexity_of(nats: float) -> float:
    """Return e to the power of `nats` a token, without an end where that is too large for a number."""
    return math.exp(nats) if nats < 700 else math.inf


def _grown(nats: float) -> str:
    """Return by how many percent perplexity changes where nats a token do by `nats`."""
    grown = 100 * (perplexity_of(nats) - 1)
    return signed(grown) if grown < 1e4 else f"+{plain_number(grown)}"


def score_span(low: float | None, high: float | None, metric: str = "") -> str:
    """Return the interval of a score, without its unit; nothing where there is none."""
    if low is None or high is None:
        return ""
    if metric == PERPLEXITY:
        return f"{perplexity(low)} to {perplexity(high)}"
    return f"{100 * low:.1f} to {100 * high:.1f}"


def count(value: int) -> str:
    """Return an integer with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def sample(n: int) -> str:
    """Return `n = 630`, held together on one line."""
    return f"n\u00a0=\u00a0{count(n)}"


def plural(value: int, noun: str) -> str:
    """Return `1 step`, `1,000 steps`, with the comma that terminals show."""
    return f"{value:,} {_form(noun, value)}"


def amount(value: int, noun: str) -> str:
    """Return `1 layer`, `8 layers`."""
    return f"{count(value)} {_form(noun, value)}"


def _form(noun: str, value: int) -> str:
    return noun if value == 1 else f"{noun}s"


def duration(seconds: float) -> str:
    """Return seconds as `4.2 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def gibibytes(value: float) -> str:
    """Return memory in GiB as `1.25 GiB`, small amounts in MiB; a dash for 0, which says that it is not known."""
    if not value:
        return "–"
    return f"{value:.2f} GiB" if value >= 0.1 else f"{1024 * value:.0f} MiB"


def size(size_bytes: int) -> str:
    """Return bytes on disk in decimal units, as file managers do."""
    value = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def plain_number(value: float) -> str:
    """Return a score or loss with three significant digits, in plain notation where that is short."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{digits}f}".replace("-", MINUS)
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace(".0e", "e").replace("-", MINUS)


def layer_list(layers: Iterable[int]) -> str:
    """Return layers as `0, 3, 8–15`: three in a row or more are told by their ends."""
    rows: list[list[int]] = []
    for layer in sorted(layers):
        if rows and layer == rows[-1][-1] + 1:
            rows[-1].append(layer)
        else:
            rows.append([layer])
    told = [[f"{row[0]}–{row[-1]}"] if len(row) > 2 else [str(layer) for layer in row] for row in rows]
    return ", ".join(name for names in told for name in names)


def named_layers(layers: Iterable[int]) -> str:
    """Return layers by their numbers: `layer 4`, `layers 4, 5, 6`, `no layers`."""
    numbers = [str(layer) for layer in layers]
    return f"{_form('layer', len(numbers))} {', '.join(numbers)}" if numbers else "no layers"


def words(name: str) -> str:
    """Return an identifier as words: `block-influence` reads `block influence`."""
    return name.replace("-", " ").replace("_", " ")


def shorten(text: str, limit: int) -> str:
    """Return `text`, cut to `limit` characters with an ellipsis."""
    return text if len(text) <= limit else f"{text[: max(1, limit - 1)].rstrip()}…"
