"""Settings that have no effect are said, by `check` and by a run; every rule, and that defaults are silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from striate.cli import app
from striate.config import parse_config
from striate.pipeline.ineffective_settings import OF_CHANGE, OF_NO_SAMPLES, OF_PAIRS, RULES, ineffective_settings

RAW: dict[str, Any] = {"model": {"path": "owner/m"}, "data": {"train": ["d"]}}
# Settings of each line, and what makes them count.
SAID: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no effect: train.lora.r, train.lora.alpha, train.lora.dropout, train.lora.modules, train.lora.use_rslora,"
    " train.lora.use_dora, train.lora.rank_pattern, train.lora.alpha_pattern (train.method is full)": (
        (
            "train.method=full",
            "train.lora={r: 3, alpha: 4, dropout: 0, modules: mlp, use_rslora: true, use_dora: true}",
            "train.lora.rank_pattern={q_proj: 2}",
            "train.lora.alpha_pattern={q_proj: 2}",
        ),
        ("train.method=lora",),
    ),
    "no effect: train.lr (select.region is none: train.projector_lr is the projector's)": (
        ("select.region=none", "train.method=full", "train.lr=1"),
        ("select.region=top:1",),
    ),
    "no effect: train.projector_lr (train.projector is frozen)": (
        ("train.projector=frozen", "train.projector_lr=1"),
        ("train.projector=lora",),
    ),
    "no effect: train.vision_lr, train.vision_layers (train.vision is frozen)": (
        ("train.vision_lr=1", "train.vision_layers=top:1"),
        ("train.vision=lora",),
    ),
    "no effect: train.epochs (train.max_steps is set)": (
        ("train.max_steps=3", "train.epochs=2"),
        ("train.max_steps=null",),
    ),
    "no effect: train.validate_every, train.metric_for_best_model, train.early_stopping_threshold"
    " (data.validate is not set)": (
        ("train={validate_every: 3, metric_for_best_model: text_loss, early_stopping_threshold: 1}",),
        ("data.validate=2%", "train.early_stopping_patience=3"),
    ),
    "no effect: train.metric_for_best_model (train.keep is last, and train.early_stopping_patience is not set)": (
        ("data.validate=2%", "train.metric_for_best_model=text_loss"),
        ("train.keep=best",),
    ),
    "no effect: train.early_stopping_threshold (train.early_stopping_patience is not set)": (
        ("data.validate=2%", "train.early_stopping_threshold=1"),
        ("train.early_stopping_patience=3",),
    ),
    "no effect: train.image_shift, train.image_check (train.image_tokens is all)": (
        ("train.image_shift=false", "train.image_check=null"),
        ("train.image_tokens=region while training",),
    ),
    "no effect: train.frozen (select.region is all)": (
        ("select.region=all", "train.frozen=fp8"),
        ("select.region=top:1",),
    ),
    "no effect: analyze.pairs (only the scorers token-swap... draw pairs)": (
        ("analyze.pairs=9",),
        ("analyze.scorers=[token-swap-flips]",),
    ),
    "no effect: analyze.base (no scorer of analyze.scorers compares with a checkpoint)": (
        ("analyze.base=b",),
        ("analyze.scorers=[parameter-change]",),
    ),
    "no effect: analyze.samples, analyze.by (no scorer of analyze.scorers reads samples)": (
        ("analyze={scorers: [token-swap], samples: 3, by: task}",),
        ("analyze.scorers=[token-swap, block-influence]",),
    ),
    "no effect: prune.until_packs (prune.until is not set)": (
        ("prune={remove: 1, until_packs: [p]}",),
        ("prune.until=visual>=99",),
    ),
    "no effect: data.calibration (no scorer reads samples)": (
        ("analyze.scorers=[token-swap]", "data.calibration=[d]"),
        ("prune={remove: 1, scorer: answer-loss}",),
    ),
    "no effect: prune.samples (no layers are ranked by answers or compensated for)": (
        ("prune={samples: 3}",),
        ("prune={remove: 1, compensate: refit, samples: 3}",),
    ),
    "no effect: prune.text_weight (no layers are ranked by answers)": (
        ("prune={text_weight: 0}",),
        ("prune={remove: 1, scorer: answer-loss, text_weight: 0}",),
    ),
    "no effect: prune.scorer, prune.compensate, prune.when (prune.remove is 0)": (
        ("prune={scorer: block-influence, compensate: scale, when: before}",),
        ("prune.remove=1",),
    ),
    "no effect: heal.share (prune.remove is 0)": (("heal.share=5%",), ("prune.remove=1",)),
    "no effect: heal.region, heal.method, heal.lr, heal.ce, heal.kl, heal.hidden, heal.top_k, heal.text, heal.text_data"
    " (nothing is healed: that takes prune.remove, and heal.steps or heal.share)": (
        (
            "prune={remove: 1, scorer: spaced}",
            "heal={region: all, method: full, lr: 1, ce: 2, kl: 0, hidden: 2, top_k: 3, text: 0, text_data: [d]}",
        ),
        ("heal.steps=1",),
    ),
    "no effect: heal.top_k (heal.kl is 0)": (
        ("prune={remove: 1, scorer: spaced}", "heal={steps: 1, kl: 0, top_k: 3}"),
        ("heal.kl=1",),
    ),
    "no effect: heal.text_data (heal.text is 0)": (
        ("prune={remove: 1, scorer: spaced}", "heal={steps: 1, text: 0, text_data: [d]}"),
        ("heal.text=0.1",),
    ),
    "no effect: evaluate.max_new_tokens, evaluate.bootstrap, evaluate.baseline, machine.eval_tokens, report.examples"
    " (evaluate.packs is empty)": (
        (
            "evaluate={max_new_tokens: 3, bootstrap: 200, baseline: tuned}",
            "machine.eval_tokens=99",
            "report.examples=3",
        ),
        ("evaluate.packs=[p]",),
    ),
    "no effect: evaluate.limit, evaluate.models, evaluate.others, machine.eval_batch"
    " (evaluate.packs and evaluate.suites are empty)": (
        ("evaluate={limit: 3, models: [start], others: {x: a/b}}", "machine.eval_batch=3"),
        ("evaluate.suites=[lm-eval:boolq]",),
    ),
    "no effect: evaluate.effect (evaluate.gate is not set)": (
        ("evaluate.packs=[p]", "evaluate.effect=2"),
        ("evaluate.gate=visual>=98",),
    ),
    "no effect: machine.pack_tokens (train.packing is false)": (("machine.pack_tokens=99",), ("train.packing=true",)),
    "no effect: machine.cache_folder (machine.cache_vision is not disk)": (
        ("machine.cache_folder=c",),
        ("machine.cache_vision=disk",),
    ),
    "no effect: model.revision (model.path is no id of the hub)": (
        ("model.path=builtin", "model.revision=v1"),
        ("model.path=a/b",),
    ),
}


def said(*overrides: str) -> list[str]:
    return list(ineffective_settings(parse_config(RAW, overrides)))


def test_scorers_are_named_by_what_they_read() -> None:
    from striate.scorers import SCORERS, runner_of

    scorers = [SCORERS.get(name) for name in SCORERS.names()]
    assert {scorer.name for scorer in scorers if scorer.needs_base} == OF_CHANGE
    assert {scorer.name for scorer in scorers if not runner_of(scorer).by_sample} == OF_NO_SAMPLES
    assert {scorer.name for scorer in scorers if scorer.name.startswith("token-swap")} == OF_PAIRS


def test_defaults_are_silent_and_every_rule_is_tried() -> None:
    assert said() == []
    assert len(SAID) == len(RULES)


def test_an_earlier_name_is_said() -> None:
    for value, now in (("false", "frozen"), ("true", "full")):
        line = f"train.train_projector is read as train.projector: {now}, which has taken its place"
        assert said(f"train.train_projector={value}") == [line]


@pytest.mark.parametrize("line", SAID)
def test_a_setting_without_effect_is_said(line: str) -> None:
    without, with_effect = SAID[line]
    assert said(*without) == [line]
    assert line not in said(*without, *with_effect)


def test_a_curve_removes_layers_whatever_prune_remove_says() -> None:
    config = parse_config(
        RAW, ("prune={scorer: answer-loss, compensate: scale, samples: 3, text_weight: 0}", "heal={steps: 1, kl: 0}")
    )
    assert list(ineffective_settings(config, curve=True)) == []
    assert [line.rpartition(" (")[2] for line in ineffective_settings(config)] == [
        "prune.remove is 0)",
        "no layers are ranked by answers or compensated for)",
        "no layers are ranked by answers)",
        "prune.remove is 0)",
        "nothing is healed: that takes prune.remove, and heal.steps or heal.share)",
    ]


def test_lora_settings_count_where_adapters_heal_full_weights() -> None:
    healed = ("prune={remove: 1, scorer: spaced}", "heal={steps: 1, method: lora}")
    assert said("train.method=full", "train.lora.r=3", *healed) == []


def test_check_says_them_and_refuses_what_a_run_would_die_of(pack_dir: Path, tmp_path: Path) -> None:
    raw = {"model": {"path": "a/b"}, "data": {"train": [str(pack_dir)]}, "prune": {"scorer": "block-influence"}}
    config = tmp_path / "RUN.yaml"
    config.write_text(json.dumps(raw), encoding="utf-8")

    def check(*settings: str) -> tuple[int, str]:
        shown = CliRunner().invoke(
            app, ["check", str(config), *(part for text in settings for part in ("--set", text))]
        )
        return shown.exit_code, shown.output

    code, printed = check()
    *_, told, refused, _, _ = printed.splitlines()
    assert (code, told) == (1, "no effect: prune.scorer (prune.remove is 0)")
    # Nothing else is wrong: the model alone is elsewhere.
    assert refused.startswith("error: not ready: the model 'a/b' is not on this machine")
    twin = tmp_path / "twin" / pack_dir.name
    (tmp_path / "empty").mkdir()
    for settings, text in (
        ([f"evaluate.packs=[{pack_dir}, {twin}]"], "two test packs are called 'pack'"),
        (["analyze.scorers=[parameter-change]"], "parameter-change compares with the untuned checkpoint"),
        (["analyze.base=nowhere"], "analyze.base 'nowhere' is no folder"),
        (["evaluate.others={x: nowhere}"], "no model at 'nowhere'"),
        ([f"evaluate.others={{x: {tmp_path / 'empty'}}}"], "has no config.json"),
    ):
        code, printed = check(*settings)
        assert code == 1
        assert text in printed
