"""Settings of evaluate and report: test packs, harness suites, bootstrap, gate, and what the page shows."""

from typing import Literal

from pydantic import Field

from striate.config.section import MOST, Section


class EvaluateSection(Section):
    """Test packs, harness suites, which models answer them, and what they must retain.

    A pack is a folder with `test.jsonl`, or NAME:FOLDER for the published files of a benchmark (`striate ls tasks`).
    A suite is `lm-eval:TASKS` or `lmms-eval:TASKS`, tasks separated by commas, with `@FOLDER` after them for your own
    tasks.
    `others` names further checkpoints (folders or hub ids) that answer beside the run's own models, such as
    `{tuned all: runs/all/checkpoint}`. `baseline` is the model that others are held against, but for a pruned
    one, which is held against the model that was pruned. `gate` is what each must retain, in %:
    `visual>=99,text>=99.5`, also of a pack or of PACK/TASK, and with `:MODEL` of one model; without, it means neither
    the baseline nor the start. `floor` asks the models that others are held against once more, without their
    pictures: retention is then told above that floor too, which a gate means by `visual_above_floor>=98`. `effect` is
    what a gate's sample is to tell, in points of retention off the bound: how many items that takes is said; left out,
    it is from the bound up to 100%. `bootstrap` counts the draws behind the intervals of perplexity.
    """

    packs: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    models: tuple[Literal["start", "tuned", "unhealed", "pruned"], ...] = ("start", "tuned", "pruned")
    others: dict[str, str] = Field(default_factory=dict)
    baseline: str = "start"
    gate: str | None = None
    floor: bool = False
    effect: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)
    limit: int | None = Field(default=None, ge=1, le=MOST)
    max_new_tokens: int = Field(default=32, ge=1, le=16_384)
    bootstrap: int = Field(default=2000, ge=100, le=100_000)


class ReportSection(Section):
    """What the page shows besides the figures: its heading, and the most questions with their answers."""

    title: str = "striate run"
    examples: int = Field(default=1000, ge=0, le=MOST)
