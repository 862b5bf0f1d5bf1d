"""Speed and memory of models on this machine, as a table."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from striate.artifacts import Bench, Spread
from striate.wording import amount

HEADS = ("model", "layers", "first token", "prefill", "decode", "weights", "peak")
UNITS = ("", "", "s", "tokens/s", "tokens/s", "GiB", "GiB")


def conditions_line(measured: Bench) -> str:
    """Return in words where and how the models were measured."""
    one = next(iter(measured.models.values()))
    load = "" if measured.load is None else f" (load average {measured.load:.1f} before)"
    return (
        f"{one.device}{load}, {one.dtype}: {one.prompts} x {one.prompt_tokens} tokens read, {one.image_tokens} of them"
        f" image tokens, {one.new_tokens} written; medians of {amount(one.repeats, 'round')} in turns"
    )


def bench_table(measured: Bench) -> Table:
    """Return a row a model: medians of speed, and memory."""
    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(HEADS):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    table.add_row(*UNITS, style="dim")
    for name, record in measured.models.items():
        peak = record.peak_memory_gib
        table.add_row(
            name,
            str(record.num_layers),
            f"{record.prefill_seconds.median:.3f}",
            f"{record.prefill_tokens_per_second:,.0f}",
            f"{record.decode_tokens_per_second.median:.1f}",
            f"{record.weights_gib:.2f}",
            "-" if peak is None else f"{peak:.2f}",
        )
    return table


def ratio_lines(measured: Bench) -> Iterator[str]:
    """Yield for every model but the first how many times as fast it is, with the least and the most of a round."""
    first, *_ = measured.models
    width = max(map(len, measured.models))
    for name, ratio in measured.ratios.items():
        prefill, decode = _times(ratio.prefill), _times(ratio.decode)
        yield f"{name:<{width}}  prefill {prefill}, decode {decode} times as fast as {first}"


def _times(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
