"""How fast the models are on one machine: a row a model, as `striate bench` measured them in turns."""

from __future__ import annotations

from striate.artifacts import Bench, SpeedRatio, SpeedRecord, Spread
from striate.reporting.html.markup import Child, tag
from striate.reporting.html.model_names import model_name
from striate.reporting.html.tables import Cell, figures, table
from striate.wording import amount

HEADS = (
    "model",
    "layers",
    "first token, s",
    "prefill, tokens/s",
    "decode, tokens/s",
    "weights, GiB",
    "peak, GiB",
    "prefill, times",
    "decode, times",
)


def draw_speeds(measured: Bench) -> list[Child]:
    """Return the section: what was measured, and a table."""
    rows = [_row(name, record, measured.ratios.get(name)) for name, record in measured.models.items()]
    return [tag("p", _about(measured), class_="caption"), table(HEADS, rows)]


def _about(measured: Bench) -> str:
    name, one = next(iter(measured.models.items()))
    versions = ", ".join(f"{package} {version}" for package, version in measured.versions.items())
    load = "" if measured.load is None else f", load average {measured.load:.1f} when it began"
    alone = "of the process, each model alone in it" if one.device.startswith("CPU") else "of weights and all on top"
    return (
        f"{one.device}, {one.dtype}, {versions}{load}: {amount(one.prompts, 'prompt')} of {one.prompt_tokens} tokens,"
        f" {one.image_tokens} of them image tokens, and {one.new_tokens} tokens written after, by transformers' own"
        f" greedy generate. The models took turns, {amount(one.repeats, 'round')} each: medians, and how many times as"
        f" fast as {name}, with the least and the most of a round. Peak memory is that {alone}."
    )


def _row(name: str, record: SpeedRecord, ratio: SpeedRatio | None) -> list[Cell]:
    peak = record.peak_memory_gib
    return [
        Cell(model_name(name), head=True),
        *figures(
            str(record.num_layers),
            f"{record.prefill_seconds.median:.3f}",
            f"{record.prefill_tokens_per_second:,.0f}",
            f"{record.decode_tokens_per_second.median:.1f}",
            f"{record.weights_gib:.2f}",
            "–" if peak is None else f"{peak:.2f}",
            _times(ratio.prefill) if ratio else "–",
            _times(ratio.decode) if ratio else "–",
        ),
    ]


def _times(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
