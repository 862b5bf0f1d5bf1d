"""Tables of time and memory by stage, of the models' sizes, and of what pruning removed."""

from striate.reporting.charts.scatter import items_per_second
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.model_names import model_name
from striate.reporting.html.tables import Cell, figures, share_bar, table
from striate.wording import count, duration, gibibytes, plain_number, size


def draw_stages(artifacts: RunArtifacts) -> Html | None:
    """Return seconds and peak memory by stage, or None where no stage is recorded."""
    if not artifacts.record or not artifacts.record.stages:
        return None
    stages = artifacts.record.stages
    longest = max(stage.seconds for stage in stages.values()) or 1.0
    rows = [
        [
            Cell(name, head=True),
            Cell(stage.status if stage.status == "done" else tag("span", "failed", class_="wrong")),
            Cell(duration(stage.seconds), right=True),
            Cell(share_bar(stage.seconds / longest), wide_only=True),
            *figures(gibibytes(stage.peak_memory_gib), stage.finished.replace("T", " ")[:19]),
        ]
        for name, stage in stages.items()
    ]
    return table(["stage", "status", "time", "", "peak memory", "finished"], rows)


def draw_models(artifacts: RunArtifacts) -> Html | None:
    """Return layers, parameters and size of each evaluated model, or None where none is."""
    if not artifacts.labels:
        return None
    records = [artifacts.evals[label] for label in artifacts.labels]
    rows = [
        [
            Cell(model_name(record.label), head=True),
            *figures(count(record.num_layers), count(record.parameters)),
            *figures(
                size(record.size_bytes) if record.size_bytes else "–", count(sum(task.n for task in record.tasks))
            ),
            *figures(duration(record.seconds), f"{plain_number(items_per_second(record))} items/s"),
            *figures(gibibytes(record.peak_memory_gib)),
        ]
        for record in records
    ]
    heads = ["model", "layers", "parameters", "on disk", "test items", "time to answer", "speed", "peak memory"]
    return table(heads, rows)


def draw_surgery(artifacts: RunArtifacts) -> Html | None:
    """Return what pruning removed and how the saved model did when reloaded, or None where nothing was pruned."""
    if not artifacts.prune:
        return None
    record = artifacts.prune
    gone = ", ".join(map(str, record.removed)) or "none"
    text = f"Removed layers: {gone} (lowest {record.scorer} outside the region). "
    sizes = f"Parameters: {count(record.parameters_before)} → {count(record.parameters_after)}. "
    changed = f"{record.compensation.told} " if record.compensation else ""
    return tag("p", text, changed, sizes, _self_test(artifacts))


def _self_test(artifacts: RunArtifacts) -> str:
    test = artifacts.prune.self_test if artifacts.prune else None
    if test is None:
        return "The saved model was not reloaded for a test."
    cached = "equals" if test.cached_equals_uncached else "differs from"
    return (
        f"Reloaded from disk: logits differ by at most {test.max_logit_difference:.3g} on {test.prompts} prompts, "
        f"and cached generation {cached} uncached."
    )
