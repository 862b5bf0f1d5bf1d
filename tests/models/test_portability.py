"""What striate makes works without striate, and a region goes into other trainers in two lines."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

import striate
from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.errors import ModelError
from striate.models.io.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from striate.models.io.load import load_model
from striate.models.io.save import save_model
from striate.models.surgery.remove_layers import remove_layers
from striate.stages.train import train

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

REGION = Region(layers=(0, 2), num_layers=4, spec="uniform:2")

# Run where striate can't be imported: for every line reads a model and inputs, writes logits and an answer.
PLAIN = """
import sys
sys.modules["striate"] = None
import json
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
for line in sys.stdin:
    folder, adapter, inputs, out = json.loads(line)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter)
    AutoProcessor.from_pretrained(adapter or folder)
    batch = torch.load(inputs, weights_only=True)
    with torch.inference_mode():
        logits = model.eval()(**batch).logits
        answer = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    torch.save({"logits": logits, "answer": answer}, out)
    print("written", flush=True)
"""
Plain = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def without_striate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plain]:
    """A function that returns logits and answers of a process that can't import striate, one for all tests."""
    home = tmp_path_factory.mktemp("plain")
    inputs, out, printed = home / "inputs.pt", home / "out.pt", home / "printed.txt"
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with printed.open("w") as errors, subprocess.Popen([sys.executable, "-c", PLAIN], stderr=errors, **pipe) as process:

        def ask(folder: Path, batch: dict[str, Any], adapter: Path | None = None) -> dict[str, Any]:
            assert process.stdin
            assert process.stdout
            out.unlink(missing_ok=True)
            torch.save(batch, inputs)
            print(json.dumps([str(folder), str(adapter or ""), str(inputs), str(out)]), file=process.stdin, flush=True)
            assert process.stdout.readline() == "written\n", printed.read_text()[-2000:]
            found: dict[str, Any] = torch.load(out, weights_only=True)
            return found

        yield ask


def tuned(loaded: Loaded, folder: Path, pack: Path, base: Path, method: str = "lora") -> Any:
    """Return the tuned model, whose checkpoint is in `folder`."""
    model = load_model(base).model
    train(
        model,
        loaded.processor,
        REGION,
        read_samples(pack, limit=4),
        TrainSection(
            method=method,  # type: ignore[arg-type]
            lora=LoraSection(r=4, alpha=8),
            batch_size=4,
            max_steps=3,
            lr=2e-2,
            projector_lr=2e-2,
            max_length=96,
        ),
        MachineSection(micro_batch=4),
        seed=0,
        out=folder,
        work_dir=folder.parent / "work",
        log=folder.parent / "log.jsonl",
        base_path=str(base),
    )
    return model


def prompts(loaded: Loaded, pack: Path) -> dict[str, Any]:
    return dict(Collator(loaded.processor, 96, train=False).encode_prompts(read_samples(pack, limit=3)))


def logits_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(**batch).logits
    return found


def test_adapter_in_plain_peft(
    tiny_llava: Loaded, tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path, without_striate: Plain
) -> None:
    model = tuned(tiny_llava, tmp_path / "adapter", pack_dir, tiny_llava_dir)
    batch = prompts(tiny_llava, pack_dir)
    ours = logits_of(model, batch)
    plain = without_striate(tiny_llava_dir, batch, adapter=tmp_path / "adapter")
    # peft puts its loaded factors in the model's own type: float32 here, as in training.
    torch.testing.assert_close(plain["logits"], ours, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, logits_of(load_model(tiny_llava_dir).model, batch), atol=1e-2)


def test_merged_checkpoint_in_plain_transformers(
    tiny_llava: Loaded, tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path, without_striate: Plain
) -> None:
    tuned(tiny_llava, tmp_path / "adapter", pack_dir, tiny_llava_dir)
    merged = load_model(tmp_path / "adapter", merge=True)
    save_model(merged.model, merged.processor, tmp_path / "merged", REGION)
    batch = prompts(tiny_llava, pack_dir)
    plain = without_striate(tmp_path / "merged", batch)
    assert torch.equal(plain["logits"], logits_of(merged.model, batch))


def test_pruned_checkpoint_in_plain_transformers(
    tiny_llava: Loaded, pack_dir: Path, tmp_path: Path, without_striate: Plain
) -> None:
    remove_layers(tiny_llava.model, (1, 3))
    save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "pruned", REGION)
    batch = prompts(tiny_llava, pack_dir)
    plain = without_striate(tmp_path / "pruned", batch)
    assert torch.equal(plain["logits"], logits_of(tiny_llava.model, batch))
    config = json.loads((tmp_path / "pruned" / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["num_hidden_layers"] == 2
    assert plain["answer"].shape[1] == batch["input_ids"].shape[1] + 4


def test_adapter_keys_follow_the_names_of_today(
    tiny_llava: Loaded, tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path
) -> None:
    tuned(tiny_llava, tmp_path / "adapter", pack_dir, tiny_llava_dir)
    keys = set(load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS))
    names = {name for name, _ in AutoModelForImageTextToText.from_pretrained(tiny_llava_dir).named_parameters()}
    parts = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    expected = {
        f"base_model.model.model.language_model.layers.{layer}.{part}_proj.lora_{factor}.weight"
        for layer in REGION.layers
        for part in parts
        for factor in "AB"
    }
    projector = {f"base_model.model.{name}" for name in names if "multi_modal_projector" in name}
    assert keys == expected | projector
    # Every adapter key, less PEFT's own words, is a parameter of the plain model.
    assert {
        key.removeprefix("base_model.model.").replace(".lora_A", "").replace(".lora_B", "") for key in keys
    } <= names


@pytest.mark.parametrize(("place", "known"), [("language_model.model.layers", True), ("model.decoder.layers", False)])
def test_an_adapter_of_other_names_is_placed_as_peft_does_or_refused_with_a_count(
    tiny_llava: Loaded, tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path, place: str, known: bool
) -> None:
    """Plain PEFT warns at most about names that it can't place, and leaves its factors at their first values."""
    adapter = tmp_path / "adapter"
    tuned(tiny_llava, adapter, pack_dir, tiny_llava_dir)
    expected = load_model(adapter).model.state_dict()
    stored = load_file(adapter / ADAPTER_WEIGHTS)
    other = {key.replace("model.language_model.layers", place): value for key, value in stored.items()}
    save_file(other, adapter / ADAPTER_WEIGHTS)
    if known:
        found = load_model(adapter).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        return
    with pytest.raises(ModelError, match=r"holds 32 tensors; \d+ of them match the base model, which has room for 32"):
        load_model(adapter)
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    assert all(name.startswith("model.language_model.layers.") for name in config["target_modules"])


def test_two_lines_in_a_plain_trainer(tiny_llava: Loaded, pack_dir: Path, tmp_path: Path) -> None:
    model = tiny_llava.model
    before = {name: value.clone() for name, value in model.named_parameters()}
    region = striate.select(model, "ids:0,2")
    striate.apply_region(model, region, method="full")
    Trainer(
        model,
        _arguments(tmp_path),
        train_dataset=read_samples(pack_dir, limit=4),  # type: ignore[arg-type]
        data_collator=Collator(tiny_llava.processor, 96, train=True),
    ).train()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert moved == {name for name in before if _chosen(name)}


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl (the extra `dev`)")
def test_two_lines_in_trl(tiny_llava: Loaded, pack_dir: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from PIL import Image
    from trl import SFTConfig, SFTTrainer

    samples = [sample for sample in read_samples(pack_dir, limit=4) if sample.images]
    rows = [{"messages": sample.chat(), "images": [Image.open(sample.images[0])]} for sample in samples]
    model = tiny_llava.model
    before = {name: value.clone() for name, value in model.named_parameters()}
    region = striate.select(model, "ids:0,2")
    config = striate.lora_config(model, region, r=4)
    arguments = SFTConfig(**_arguments(tmp_path).to_dict() | {"max_length": None})
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_llava.processor,
        peft_config=config,
    )
    trainer.train()
    assert isinstance(trainer.model, peft.PeftModel)
    after = dict(trainer.model.named_parameters())
    trained = {name for name, value in after.items() if value.requires_grad}
    factors = {name for name in after if ".lora_" in name}
    copies = {name for name in after if ".modules_to_save." in name}
    assert trained == factors | copies
    assert len(factors) == 2 * 7 * 2
    assert copies
    assert all(f".layers.{layer}." in "".join(factors) for layer in (0, 2))
    assert not any(f".layers.{layer}." in name or "vision" in name for name in factors for layer in (1, 3))
    assert all(bool(after[name].any()) for name in factors if ".lora_B." in name)
    plain = {name.removeprefix("base_model.model.").replace(".base_layer", ""): value for name, value in after.items()}
    frozen = [name for name in before if name in plain and not plain[name].requires_grad]
    assert all(torch.equal(plain[name], before[name]) for name in frozen)
    assert len(frozen) > 40


def _arguments(folder: Path) -> TrainingArguments:
    """Return the settings of two short steps."""
    return TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        seed=0,
    )


def _chosen(name: str) -> bool:
    """Return whether a parameter of the tiny model lies in the region or the projector."""
    return "multi_modal_projector" in name or any(f"language_model.layers.{layer}." in name for layer in (0, 2))
