"""The words of a sweep's table: its columns, what a group changes, and what its marks mean."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from striate.artifacts import SweepRecord, SweptGroup, SweptScore
from striate.cli.views.sweep_table import sweep_lines, sweep_table
from striate.reporting.sweep_page import draw_sweep
from striate.reporting.sweep_rows import cells, columns, settings_told
from striate.reporting.sweep_wording import above_floor_told, has_floor, legend, text_told


def group(visual: SweptScore | None = None, model: str = "tuned", **settings: Any) -> SweptGroup:
    return SweptGroup(settings=settings, model=model, runs=("a",), seeds=(0,), visual=visual)


def record(*groups: SweptGroup, **more: Any) -> SweepRecord:
    return SweepRecord(varied=("train.lr", "heal.lr", "seed", "select.region"), runs=(), groups=groups, **more)


def test_settings_that_end_alike_are_told_by_their_whole_names() -> None:
    rates = group(**{"train.lr": 0.1, "heal.lr": 0.2, "select.region": "all"})
    found = columns(record(rates))
    assert list(found.values()) == ["train.lr", "heal.lr", "region"]
    assert settings_told(rates, found) == "train.lr 0.1, heal.lr 0.2, region all"
    assert list(columns(record(group(**{"train.lr": 0.1}))).values()) == ["lr"]
    assert settings_told(group(model="pruned"), {}) == "the base, pruned"


def named(name: str, **settings: Any) -> SweptGroup:
    return group(SweptScore(scores=(50.0,), mean=50.0), **settings).model_copy(update={"name": name})


def test_names_of_rows_stand_for_what_they_imply() -> None:
    """Of what a named row changes, only that has a column which the name does not say."""
    whole, slow, fast = (
        named(name, **{"select.region": region, "train.lr": rate})
        for name, region, rate in (("whole", "all", 0.1), ("part", "ids:1", 0.1), ("part", "ids:1", 0.2))
    )
    swept = record(whole, slow, fast)
    found = columns(swept)
    assert list(found.values()) == ["run", "lr"]
    assert [settings_told(one, found) for one in swept.groups] == ["whole, lr 0.1", "part, lr 0.1", "part, lr 0.2"]
    assert legend(swept, "*") == ["whole: region all", "part: region ids:1"]
    mixed = record(whole, group(**{"select.region": "none"}))
    assert list(columns(mixed).values()) == ["run", "region"]
    assert legend(mixed, "*") == ["whole: lr 0.1"]


def test_a_name_that_implies_nothing_is_not_explained() -> None:
    rates = record(named("fast", **{"train.lr": 0.2}), group(**{"train.lr": 0.1}), named("plain"))
    assert [cells(one, columns(rates)) for one in rates.groups] == [["fast", "0.2"], ["", "0.1"], ["plain", ""]]
    assert legend(rates, "*") == ["plain: the base"]


def test_values_are_told_as_set_takes_them() -> None:
    values = [[], ["a", "b"], ["a,b"], "a,b", None, "null", True]
    rows = [group(**{"train.lr": value}) for value in values]
    told = [cells(row, columns(record(*rows)))[0] for row in rows]
    assert told == ["[]", "[a, b]", "['a,b']", "a,b", "null", "'null'", "true"]


def printed(swept: SweepRecord, width: int) -> list[str]:
    """Return the lines of a sweep's table in a terminal, white space joined."""
    console, lines = Console(width=width, file=io.StringIO()), list[str]()
    for part in sweep_lines(swept, width):
        with console.capture() as shown:
            console.print(part, soft_wrap=isinstance(part, str))
        lines += [" ".join(line.split()) for line in shown.get().splitlines()]
    return lines


def test_scores_are_shown_however_much_varies() -> None:
    long = f"ids:{'1,' * 20}2"
    tuned, other = (named("x" * 40, **{"train.lr": rate, "select.region": long}) for rate in (0.1, 0.2))
    pruned = tuned.model_copy(update={"model": "pruned"})
    swept = record(tuned, pruned, other)
    named_lines = printed(swept, 300)
    assert named_lines == [
        "run lr model seeds visual kept text kept seconds",
        f"{'x' * 40} 0.1 tuned 1 50.0",
        f"{'x' * 40} 0.1 pruned 1 50.0",
        f"{'x' * 40} 0.2 tuned 1 50.0",
        f"{'x' * 40}: region {long}",
    ]
    # It fits, though most of it is what varies.
    assert printed(swept, 95) == named_lines
    assert printed(swept, 80) == [
        "run model seeds visual kept text kept seconds",
        "1 tuned 1 50.0",
        "1 pruned 1 50.0",
        "2 tuned 1 50.0",
        f"1: {'x' * 40}, lr 0.1",
        f"2: {'x' * 40}, lr 0.2",
        f"{'x' * 40}: region {long}",
    ]


def test_the_legend_tells_the_marks_that_stand_there() -> None:
    assert legend(record(group()), "*") == []
    best = group(SweptScore(scores=(50.0, 60.0), mean=55.0, spread=7.1, kept=90.0, low=80.0, high=99.0))
    whole = group(SweptScore(scores=(0.0,), mean=0.0)).model_copy(update={"compared": True})
    full = record(best.model_copy(update={"best": True}), whole, chosen_by="loss")
    assert legend(full, "*") == [
        "*: the best by loss on held-out samples",
        "= 100%: what the others are held against",
        "±: standard deviation over seeds",
        "in brackets: 95% interval over items",
        "of a score of 0 nothing can be kept",
    ]


def test_what_is_kept_above_the_floor_has_a_column_where_it_was_measured() -> None:
    floor = {"floor": 30.0, "above_floor": 90.0, "above_floor_low": 80.04, "above_floor_high": 99.0}
    plain = SweptScore(scores=(50.0,), mean=50.0, kept=95.0, low=90.0, high=101.0, n=40)
    seen, blind = plain.model_copy(update=floor), plain.model_copy(update={"floor": 30.0, "no_above_floor": "too low"})
    full = record(group(seen), group(blind), group(plain))
    assert [above_floor_told(one.visual) for one in full.groups] == ["90.0% (80.0 to 99.0)", "can't tell", ""]
    lines = [
        "in brackets: 95% interval over items",
        "above the floor: what is kept of the visual score over 30.0, which = 100% has with grey pictures",
        "can't tell: too low",
    ]
    assert legend(full, "*") == lines
    heads = [column.header for column in sweep_table(full).columns]
    assert heads == ["model", "seeds", "visual", "kept", "above the floor", "text", "kept", "seconds"]
    assert [*sweep_table(full).columns[4].cells] == ["90.0% (80.0 to 99.0)", "can't tell", ""]
    page = draw_sweep(full, "s")
    assert '<td class="number" data-label="above the floor">90.0% (80.0 to 99.0)</td>' in page
    bare = record(group(plain))
    assert [has_floor(full), has_floor(bare)] == [True, False]
    assert "above the floor" not in draw_sweep(bare, "s")
    assert "above the floor" not in [column.header for column in sweep_table(bare).columns]


def test_plain_text_is_told_by_its_perplexity() -> None:
    plain = group().model_copy(update={"nats": 3.0})
    assert text_told(plain) == "perplexity 20.1"
    scored = plain.model_copy(update={"text": SweptScore(scores=(50.0,), mean=50.0)})
    assert text_told(scored) == "50.0, perplexity 20.1"
    assert "perplexity 20.1" in draw_sweep(record(plain), "s")
    assert text_told(group()) == ""


def test_page_and_terminal_tell_the_same_of_a_group() -> None:
    rates = group(SweptScore(scores=(50.0,), mean=50.0), **{"train.lr": 0.1, "heal.lr": 0.2})
    whole = rates.model_copy(update={"compared": True})
    console = Console(width=200, file=io.StringIO())
    with console.capture() as printed:
        console.print(sweep_table(record(whole)))
    line = printed.get().splitlines()[1]
    assert line.split()[:5] == ["0.1", "0.2", "tuned", "=", "100%"]
    page = draw_sweep(record(whole), "s")
    assert "Highest visual score: train.lr 0.1, heal.lr 0.2, 50.0." in page
    assert "= 100%: what the others are held against." in page
