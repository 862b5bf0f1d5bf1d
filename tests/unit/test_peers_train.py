"""What a training changed, told from two folders of weights: layers, components and adapters."""

from __future__ import annotations

from pathlib import Path

import peers_train
import pytest
import torch
from safetensors.torch import save_file

BEFORE = {
    "model.vision_tower.encoder.layers.0.q_proj.weight": torch.zeros(2, 2),
    "model.multi_modal_projector.linear_1.weight": torch.zeros(2, 2),
    "model.language_model.layers.0.q_proj.weight": torch.zeros(2, 2),
    "model.language_model.layers.10.q_proj.weight": torch.zeros(2, 2),
    "model.language_model.embed_tokens.weight": torch.zeros(2, 2),
    "lm_head.weight": torch.zeros(2, 2),
}
NOTHING = dict.fromkeys(("projector", "vision encoder", "language model's layers", "embeddings"), "no")


def folder(at: Path, tensors: dict[str, torch.Tensor]) -> Path:
    at.mkdir()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, at / "model.safetensors")
    return at


def told(before: Path, after: Path) -> dict[str, str]:
    return peers_train.by_component(peers_train.changed_names(before, after))


def test_changed_layers_are_numbered_and_those_of_the_vision_encoder_are_not_among_them(tmp_path: Path) -> None:
    before = folder(tmp_path / "before", BEFORE)
    changed = {name: tensor + ("layers" in name) for name, tensor in BEFORE.items()}
    found = told(before, folder(tmp_path / "after", changed))
    assert found == NOTHING | {
        "vision encoder": "yes",
        "language model's layers": "0, 10",
        "output head": "no",
        "other": "no",
    }


def test_names_of_another_transformers_version_are_the_same_tensors(tmp_path: Path) -> None:
    older = {name.replace("model.language_model.", "language_model.model."): tensor for name, tensor in BEFORE.items()}
    after = folder(tmp_path / "after", {name.replace("model.vision", "vision"): older[name] for name in older})
    assert set(told(folder(tmp_path / "before", BEFORE), after).values()) == {"no"}


def test_of_an_adapter_what_moves_the_output_counts(tmp_path: Path) -> None:
    place = "base_model.model.model.language_model.layers.{}.q_proj.lora_{}.weight"
    adapter = {place.format(layer, matrix): torch.ones(2, 2) for layer in (0, 10) for matrix in "AB"}
    adapter[place.format(10, "B")] = torch.zeros(2, 2)
    adapter["base_model.model.model.multi_modal_projector.linear_1.weight"] = torch.ones(2, 2)
    found = told(folder(tmp_path / "before", BEFORE), folder(tmp_path / "after", adapter))
    assert (found["language model's layers"], found["projector"]) == ("0", "yes")


def test_another_model_and_a_folder_without_weights_are_refused(tmp_path: Path) -> None:
    before = folder(tmp_path / "before", BEFORE)
    with pytest.raises(SystemExit, match="not in BEFORE"):
        told(before, folder(tmp_path / "other", {"model.layers.0.k_proj.weight": torch.zeros(1)}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="holds no"):
        told(before, tmp_path / "empty")
