"""Speed and memory of models on this machine, as a table."""

from __future__ import annotations

from rich.table import Table

from striate.artifacts import Bench, SpeedRatio, Spread

HEADS = ("model", "layers", "first token", "prefill", "decode", "weights", "peak", "prefill", "decode")


def bench_table(measured: Bench) -> Table:
    """Return a row a model: medians with their spread, memory, and how many times as fast as the first it is."""
    first, *_ = measured.models
    one = measured.models[first]
    title = (
        f"{one.device}, {one.dtype}: {one.prompts} x {one.prompt_tokens} tokens read ({one.image_tokens} image tokens),"
        f" {one.new_tokens} written, {one.repeats} rounds in turns; medians with the least and the most;"
        f" times as fast as {first}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for place, name in enumerate(HEADS):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    table.add_row("", "", "s", "tokens/s", "tokens/s", "GiB", "GiB", "times", "times", style="dim")
    for name, record in measured.models.items():
        peak = record.peak_memory_gib
        table.add_row(
            name,
            str(record.num_layers),
            _spread(record.prefill_seconds, 3),
            f"{record.prefill_tokens_per_second:,.0f}",
            _spread(record.decode_tokens_per_second, 1),
            f"{record.weights_gib:.2f}",
            "-" if peak is None else f"{peak:.2f}",
            *_times(measured.ratios.get(name)),
        )
    return table


def _spread(values: Spread, digits: int) -> str:
    return f"{values.median:.{digits}f} ({values.low:.{digits}f}-{values.high:.{digits}f})"


def _times(ratio: SpeedRatio | None) -> tuple[str, str]:
    return ("", "") if ratio is None else (_spread(ratio.prefill, 2), _spread(ratio.decode, 2))
