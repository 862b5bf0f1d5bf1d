"""Format numbers, intervals and counts, in one way everywhere on the page."""

import math

MINUS = "−"


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
    """Return a difference of scores in percentage points, or in nats for perplexity."""
    return f"{signed(difference, 3)} nats" if metric == "perplexity" else f"{signed(100 * difference)} points"


def interval(span_text: str, why_none: str) -> str:
    """Return `95% interval +4.0 to +8.2`, or that there is none and why."""
    return f"95% interval {span_text}" if span_text else f"no 95% interval: {why_none or 'it was not measured'}"


def span(low: float | None, high: float | None, metric: str = "") -> str:
    """Return the interval of a difference as `+4.0 to +8.2`; nothing where there is none."""
    if low is None or high is None:
        return ""
    scale, digits = (1.0, 3) if metric == "perplexity" else (100.0, 1)
    return f"{signed(scale * low, digits)} to {signed(scale * high, digits)}"


def score(value: float, metric: str = "") -> str:
    """Return a score in percent, or a perplexity score in nats a token."""
    return f"{value:.3f} nats" if metric == "perplexity" else percent(value)


def score_span(low: float | None, high: float | None, metric: str = "") -> str:
    """Return the interval of a score, without its unit; nothing where there is none."""
    if low is None or high is None:
        return ""
    if metric == "perplexity":
        return f"{low:.3f} to {high:.3f}"
    return f"{100 * low:.1f} to {100 * high:.1f}"


def count(value: int) -> str:
    """Return an integer with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def sample(n: int) -> str:
    """Return `n = 630`, held together on one line."""
    return f"n\u00a0=\u00a0{count(n)}"


def amount(value: int, noun: str) -> str:
    """Return `1 layer`, `8 layers`."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return seconds as `4.2 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def gibibytes(value: float) -> str:
    """Return memory in GiB as `1.25 GiB`, small amounts in MiB."""
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


def words(name: str) -> str:
    """Return an identifier as words: `block-influence` reads `block influence`."""
    return name.replace("-", " ").replace("_", " ")


def shorten(text: str, limit: int) -> str:
    """Return `text`, cut to `limit` characters with an ellipsis."""
    return text if len(text) <= limit else f"{text[: max(1, limit - 1)].rstrip()}…"
