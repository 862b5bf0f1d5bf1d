"""What trains, beyond which layers: LoRA's options through training, resuming, compiling, and plain PEFT."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from test_projector_lora import check_as_vllm_does
from training_kit import Killed, Run, Said, losses, runner, weights
from transformers import LlavaForConditionalGeneration
from typer.testing import CliRunner

from striate.artifacts import Region
from striate.cli import app
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import TrainingError
from striate.models.io.load import Loaded, load_model
from striate.training import session

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
LORA = TrainSection(batch_size=4, lr=1e-2, warmup_ratio=0, max_length=96, max_steps=3, save_steps=1)
DORA = LORA.model_copy(
    update={
        "lora": LoraSection(
            r=4, alpha=8, dropout=0.1, modules="gate+up+q_proj", use_dora=True, rank_pattern={"q_proj": 2}
        )
    }
)


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir)


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample], tiny_llava_dir: Path) -> Run:
    return partial(runner(tmp_path, samples, REGION, MachineSection(micro_batch=2)), base_path=str(tiny_llava_dir))


def reloads_with_plain_peft(folder: Path, base: Path, tuned: Loaded, samples: list[Sample]) -> None:
    """The checkpoint in `folder` gives the tuned model's logits when PEFT loads it without striate, and here."""
    batch = Collator(tuned.processor, 96, train=True)(samples[:2])
    plain = peft.PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(base), folder).eval()
    with torch.no_grad():
        expected = tuned.model(**batch).logits
        for model in (plain, load_model(folder, device="cpu").model):
            stored = model.get_base_model().state_dict()
            assert stored.keys() == tuned.model.state_dict().keys()
            assert all(torch.equal(stored[name], tensor) for name, tensor in tuned.model.state_dict().items())
            torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-4)
        merged = load_model(folder, device="cpu", merge=True).model
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(LlavaForConditionalGeneration.from_pretrained(base)(**batch).logits, expected)


def test_options_of_lora_resume_and_reload(
    run: Run, tiny_llava: Loaded, tiny_llava_dir: Path, samples: list[Sample], tmp_path: Path
) -> None:
    whole, killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(3))
    record = run(whole, "whole", DORA)
    with pytest.raises(KeyboardInterrupt):
        run(killed, "cut", DORA, progress=Killed(3))
    plainer = DORA.model_copy(update={"lora": DORA.lora.model_copy(update={"use_dora": False})})
    with pytest.raises(TrainingError, match=r"train\.lora changed"):
        run(copy.deepcopy(tiny_llava), "cut", plainer)
    run(resumed, "cut", DORA, progress=Said())
    expected = weights(whole.model)
    found = weights(resumed.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    adapted = {name.split("layers.")[1].partition(".lora_A")[0] for name in found if ".lora_A." in name}
    assert adapted == {
        f"{layer}.{name}" for layer in (1, 3) for name in ("mlp.gate_proj", "mlp.up_proj", "self_attn.q_proj")
    }
    # A, B and the norms of each.
    assert record.proof.startswith("18 tensors in 2 of 4 decoder layers and 4 tensors of the projector")
    reloads_with_plain_peft(tmp_path / "cut" / "checkpoint", tiny_llava_dir, resumed, samples)


def test_a_compiled_dora_is_the_same(
    run: Run, tiny_llava: Loaded, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "compiled_layers", partial(session.compiled_layers, backend="eager"))
    config = DORA.model_copy(update={"lora": DORA.lora.model_copy(update={"dropout": 0.0}), "max_steps": 2})
    plain, said = copy.deepcopy(tiny_llava), Said()
    run(plain, "plain", config, samples=samples[:4])
    run(tiny_llava, "compiled", config, samples=samples[:4], machine={"compile": "on"}, progress=said)
    assert any(line.startswith("6 of 6 layers run compiled") for line in said.said)
    torch.testing.assert_close(losses(tmp_path / "compiled"), losses(tmp_path / "plain"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [({"lora": {"modules": ["gate", "up"]}}, {"lora": {"modules": "gate+up"}}), ({}, {"lora": {"modules": "all"}})],
)
def test_settings_in_other_words(before: dict[str, Any], after: dict[str, Any]) -> None:
    one, other = TrainSection.model_validate(before), TrainSection.model_validate(after)
    assert (one, one.noted()) == (other, other.noted())


def test_settings_that_came_later_are_noted_where_they_are_changed() -> None:
    assert set(LoraSection().noted()) == {"r", "alpha", "dropout"}
    changed = LoraSection(use_rslora=True, rank_pattern={"q_proj": 2})
    assert set(changed.noted()) == {"r", "alpha", "dropout", "use_rslora", "rank_pattern"}
    assert hash(changed) != hash(LoraSection())


@pytest.mark.parametrize("verb", ["check", "run"])
def test_an_unknown_module_is_found_before_anything_is_computed(
    tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path, verb: str
) -> None:
    config = {"model": {"path": str(tiny_llava_dir)}, "data": {"train": [str(pack_dir)]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**config, "train": {"lora": {"modules": "q_prj+gate"}}}))
    where = [] if verb == "check" else ["--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, [verb, str(tmp_path / "run.yaml"), *where])
    assert shown.exit_code == 1
    assert "train.lora.modules: 'q_prj' is no linear layer of the region" in shown.output
    assert "did you mean 'q_proj'?" in shown.output
    assert not (tmp_path / "run" / "scores.json").exists()


def test_a_projector_with_adapters(
    run: Run, tiny_llava: Loaded, tiny_llava_dir: Path, samples: list[Sample], tmp_path: Path
) -> None:
    config = LORA.model_copy(update={"projector": "lora", "lora": LoraSection(r=4, alpha=8), "projector_lr": 1e-2})
    untouched = copy.deepcopy(tiny_llava.model)
    record = run(tiny_llava, "run", config)
    assert "and 4 tensors of the projector received finite gradients" in record.proof
    folder = tmp_path / "run" / "checkpoint"
    check_as_vllm_does(folder, untouched)
    reloads_with_plain_peft(folder, tiny_llava_dir, tiny_llava, samples)
    trained = {name for name, tensor in tiny_llava.model.named_parameters() if "projector" in name and "lora_B" in name}
    assert len(trained) == 2
    assert all(dict(tiny_llava.model.named_parameters())[name].abs().max() > 0 for name in trained)
