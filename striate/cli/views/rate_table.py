"""Learning rates that were tried, as a table, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from striate.artifacts import RateSearch, RateTrial


def rate_table(found: RateSearch) -> Table:
    """Return a row a rate: the loss of the last steps, held-out loss, and exact matches; the best one is bold."""
    kinds = [kind for kind in ("visual", "text") if getattr(found, f"{kind}_samples")]
    table = Table(box=None, pad_edge=False)
    for name in ("train.lr", "loss", "held-out loss", *(f"exact match, {kind}" for kind in kinds)):
        table.add_column(name, justify="right", overflow="fold")
    for trial in found.trials:
        figures = _figures(trial, kinds) if trial.measured else ["diverged", *"-" * (1 + len(kinds))]
        table.add_row(f"{trial.lr:g}", *figures, style="bold" if trial.lr == found.best else "")
    return table


def _figures(trial: RateTrial, kinds: list[str]) -> list[str]:
    matches = [f"{100 * trial.measured[f'{kind}_exact_match']:.1f}%" for kind in kinds]
    return [f"{trial.last_loss:.4f}", f"{trial.measured['loss']:.4f}", *matches]


def advice(found: RateSearch) -> Iterator[str]:
    """Yield in words what was tried, what limits it, and last the setting to use."""
    samples, whole = found.visual_samples + found.text_samples, found.whole_steps
    yield f"{found.steps} of {whole} steps each, measured by {found.metric} on {samples} held-out samples"
    if not found.own:
        yield "they are of the training data: set data.validate to hold some out of the run too"
    if found.best is None:
        yield "all rates diverged: try lower ones with --rates"
        return
    if found.open_end:
        end = "lowest" if found.best == found.trials[0].lr else "highest"
        yield f"the best rate is the {end} that was tried: a better one may lie beyond it, try more with --rates"
    yield f"--set train.lr={found.best:g}"
