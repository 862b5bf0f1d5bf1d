"""The verdicts of the region study as Markdown: the words on the claims first, then the figures behind them."""

from __future__ import annotations

from typing import Any

from markdown_table import table
from study_arms import ALL, UNIFORM
from study_bars import CANT_TELL, LEAST_ABOVE_FLOOR, LEAST_ITEMS, SEEDS_OF_BOTH

from striate.wording import plural, signed

OPEN = "†"
_CLAIMS = {
    "1": "keeps nearly all visual skill",
    "2": "keeps what the paper's as many layers keep, less one point",
    "3a": "keeps less than uniform:25%",
    "3b": "keeps less than uniform:25%, chosen by scores",
    "4": "text is kept",
}


def markdown(told: dict[str, Any]) -> str:
    """Return all tables."""
    parts = [f"# Verdicts of {told['sweep']}", _head(told), _claims(told), _tasks(told), _kept(told), _words(told)]
    parts.append(_rates(told))
    if told["left_out"]:
        parts.append("\n".join(["## Left out", "", *(f"- {line}" for line in told["left_out"])]))
    return "\n\n".join(parts) + "\n"


def _head(told: dict[str, Any]) -> str:
    seeds = ", ".join(f"{arm['arm']} {len(arm['seeds'])}" for arm in told["arms"] if arm["arm"] in (ALL, UNIFORM))
    lines = [
        f"Rates: each region's own best by {told['chosen_by']} on held-out samples. Intervals are 95%, over items.",
        f"Seeds: {seeds}; docs/study.md asks for {SEEDS_OF_BOTH} of both.",
    ]
    if not any(arm["perplexity"] for arm in told["arms"]):
        lines.append("No perplexity of plain text was asked: claim 4 is told by the text tasks alone.")
    against = [arm for arm in told["arms"] if arm["arm"] in (ALL, UNIFORM) and arm["before_it_counts"]]
    lines += [
        f"No verdict counts yet that is about {arm['arm']}: {'; '.join(arm['before_it_counts'])}." for arm in against
    ]
    if any(_mark(arm) for arm in told["arms"]):
        lines.append(f"{OPEN}: something is missing before a verdict counts, which the table of regions names.")
    return "  \n".join(lines)


def _claims(told: dict[str, Any]) -> str:
    """Return a line a claim, with the word on each arm; claim 1 with its figures, and at one rate for all."""
    lines = []
    for claim, says in _CLAIMS.items():
        arms = [arm for arm in told["arms"] if claim in arm["words"]]
        if arms:
            words = "; ".join(f"{arm['arm']} **{arm['words'][claim]}**{_mark(arm)}" for arm in arms)
            lines.append(f"- Claim {claim} ({says}): {words}")
    one = told["one_rate"]
    said = f"{UNIFORM} has no run with a seed of {ALL} at this rate"
    if one["claim_1"]:
        kept = f"kept {share(one['kept'])}, above the floor {share(one['above_floor'])}"
        said = f"{UNIFORM} **{one['claim_1']}** ({kept}; {plural(len(one['seeds']), 'seed')})"
    lines.append(f"- At one rate for all, {one['rate']}, the best of {ALL}: claim 1: {said}")
    return "\n".join(["## Claims", "", *lines])


def _tasks(told: dict[str, Any]) -> str:
    rows = [
        [
            f"{task['pack']}/{task['task']}",
            task["metric"],
            f"{task['score']:.1f}",
            "" if task["floor"] is None else f"{task['floor']:.1f}",
            str(task["items"]),
            str(task["pictures"]),
            "yes" if task["counts"] else CANT_TELL,
        ]
        for task in told["tasks"]
    ]
    out = [row[0] for row in rows if row[-1] == CANT_TELL]
    named = ", ".join(out) if out else "none"
    note = (
        f"In no mean, as {ALL} is not {LEAST_ABOVE_FLOOR:g} points above its floor there, or as there are fewer than"
        f" {LEAST_ITEMS} items: {named}."
    )
    heads = ["task", "metric", ALL, "floor", "items", "pictures", "counts"]
    return "\n\n".join(["## Tasks with pictures", table(heads, rows), note])


def _kept(told: dict[str, Any]) -> str:
    rows = []
    for arm in told["arms"]:
        kept = arm["visual_kept"] or {"items": 0, "pictures": 0}
        cells = [arm["arm"] + _mark(arm), str(arm["layers"]), arm["rate"], str(len(arm["seeds"]))]
        shares = [share(arm[name]) for name in ("visual_kept", "above_floor", "text_kept")]
        raw, above, text = ["= 100%"] * 3 if arm["arm"] == ALL else shares
        cells += [score(arm["visual"]), raw, above, score(arm["text"]), text]
        cells += [f"{kept['items']} / {kept['pictures']}", "; ".join(arm["before_it_counts"])]
        rows.append(cells)
    heads = ["region", "layers", "rate", "seeds", "visual ± sd", "kept, raw", "kept above the floor", "text ± sd"]
    heads += ["text kept", "items / pictures", "missing"]
    return "\n\n".join(["## Each region at its own best rate", table(heads, rows)])


def _words(told: dict[str, Any]) -> str:
    rows = []
    for arm in told["arms"]:
        against, words = arm["against_uniform"], arm["words"]
        twice = "" if not against or against["sd"] is None else f"{2 * against['sd']:.1f}"
        nats = ", ".join(f"{row['nats']:+.3f}" for row in arm["perplexity"])
        if arm["arm"] == ALL:
            continue
        cells = [arm["arm"] + _mark(arm), words.get("1", ""), words.get("2", ""), difference(against), twice]
        cells.append(words.get("3a", ""))
        rows.append([*cells, words.get("3b", ""), difference(arm["text_difference"]), nats, words.get("4", "")])
    heads = ["region", "1", "2", f"visual, points to {UNIFORM}", "2 sd of it", "3a", "3b", f"text, points to {ALL}"]
    return "\n\n".join(["## Words", table([*heads, "perplexity, nats", "4"], rows)])


def _rates(told: dict[str, Any]) -> str:
    """Return the scores of every region at every rate, visual and text; a star marks the chosen rate."""
    rates = sorted({row["rate"] for arm in told["rates"] for row in arm["scores"]}, key=_number)
    rows = []
    for arm in told["rates"]:
        known = {row["rate"]: row for row in arm["scores"]}
        cells = [_both(known[rate]) + ("*" if rate == arm["best"] else "") if rate in known else "" for rate in rates]
        rows.append([arm["arm"], *cells])
    note = "Visual / text score in %, of one seed; the star marks the rate that held-out samples chose."
    return "\n\n".join(["## Every region at every rate", note, table(["region", *rates], rows)])


def share(kept: dict[str, Any] | None) -> str:
    """Return what is kept with its interval, or that it can't be told."""
    if not kept or kept.get("kept") is None:
        return CANT_TELL
    return f"{kept['kept']:.1f}%" + ("" if kept["low"] is None else f" ({kept['low']:.1f} to {kept['high']:.1f})")


def score(found: dict[str, Any] | None) -> str:
    """Return a mean score with its spread over seeds."""
    if not found:
        return ""
    return f"{found['mean']:.1f}" + ("" if found["sd"] is None else f" ± {found['sd']:.1f}")


def difference(found: dict[str, Any] | None) -> str:
    """Return a difference in points with its interval."""
    if not found:
        return ""
    ends = "" if found["low"] is None else f" ({signed(found['low'])} to {signed(found['high'])})"
    return f"{signed(found['points'])}{ends}"


def _mark(arm: dict[str, Any]) -> str:
    return OPEN if arm["before_it_counts"] else ""


def _both(row: dict[str, Any]) -> str:
    return " / ".join("–" if row[kind] is None else f"{row[kind]['mean']:.1f}" for kind in ("visual", "text"))


def _number(rate: str) -> tuple[bool, float, str]:
    try:
        return False, float(rate), rate
    except ValueError:
        return True, 0.0, rate
