from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from striate.errors import ModelError
from striate.models.io.weights.layer_weights import layer_matrices
from striate.models.io.weights.stored_matrices import StoredMatrices
from striate.models.structure.anatomy import find_anatomy, layer_of, unwrap
from striate.scorers.runners.weights import run_stored_weights, run_weights
from striate.scorers.spectrum import SPECTRUM_SNR, signal_to_noise, singular_values
from striate.scorers.weight_change import ANGULAR_CHANGE, PARAMETER_CHANGE, angular_change, parameter_change

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

Built = tuple[Any, dict[str, Any]]
CHANGES = (PARAMETER_CHANGE, ANGULAR_CHANGE)
EVERY = (SPECTRUM_SNR, *CHANGES)
FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "idefics3", "paligemma", "mllama")


def numpy_snr(weight: np.ndarray) -> float:
    """Return Spectrum's ratio by NumPy's decomposition."""
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    sigma = (np.quantile(values, 0.75) - np.quantile(values, 0.25)) / 1.349
    edge = sigma * (1 + math.sqrt(min(weight.shape) / max(weight.shape)))
    edge = max(edge, values.min())
    return values[values > edge].sum() / values[values <= edge].sum() / values.max()


def matrices(model: Any) -> dict[str, np.ndarray]:
    anatomy = find_anatomy(model)
    named = model.state_dict().items()
    return {name: one.numpy().copy() for name, one in named if layer_of(anatomy, name) is not None and one.ndim == 2}


def mean_by_layer(model: Any, values: dict[str, float]) -> np.ndarray:
    anatomy = find_anatomy(model)
    rows: list[list[float]] = [[] for _ in range(anatomy.num_layers)]
    for name, value in values.items():
        rows[layer_of(anatomy, name)].append(value)
    return np.array([np.mean(row) for row in rows])


def expected_snr(model: Any) -> np.ndarray:
    ratios = {name: numpy_snr(weight) for name, weight in matrices(model).items()}
    kinds = {name: name.partition(f".{layer_of(find_anatomy(model), name)}.")[2] for name in ratios}
    means = {kind: np.mean([ratios[name] for name in ratios if kinds[name] == kind]) for kind in kinds.values()}
    return mean_by_layer(model, {name: ratio / means[kinds[name]] for name, ratio in ratios.items()})


def nudge(model: Any, size: float = 0.1) -> None:
    """Change the decoder's matrices, each layer more than the one before."""
    generator = torch.Generator().manual_seed(5)
    anatomy = find_anatomy(model)
    with torch.no_grad():
        for name, one in model.named_parameters():
            layer = layer_of(anatomy, name)
            if layer is not None:
                one.add_(size * (layer + 1) * torch.randn(one.shape, generator=generator) * one.abs().mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_numpy_in_every_family(name: str, family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    model, _ = family_builder(name)
    before = matrices(model)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    nudge(model)
    after = matrices(model)
    steps = {n: np.linalg.norm(after[n] - before[n]) / np.linalg.norm(before[n]) for n in before}
    angles = {
        n: np.arccos((after[n] * before[n]).sum() / np.linalg.norm(after[n]) / np.linalg.norm(before[n])) / math.pi
        for n in before
    }
    found = run_weights(model, find_anatomy(model), EVERY, tmp_path)
    np.testing.assert_allclose(found["parameter-change"], mean_by_layer(model, steps), atol=1e-4)
    np.testing.assert_allclose(found["angular-change"], mean_by_layer(model, angles), atol=1e-4)
    np.testing.assert_allclose(found["spectrum-snr"], expected_snr(model), atol=1e-4)
    assert (np.diff(found["parameter-change"]) > 0).all()


def test_closed_forms_of_change() -> None:
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    turned = torch.stack([-weight[1], weight[0]])
    assert parameter_change(weight, weight) == 0
    assert angular_change(weight, weight) == 0
    assert parameter_change(weight, 3 * weight).item() == pytest.approx(2)
    assert angular_change(weight, 3 * weight).item() == pytest.approx(0, abs=1e-6)
    assert angular_change(weight, -weight).item() == pytest.approx(1)
    assert angular_change(weight[:2], turned).item() == pytest.approx(0.5, abs=1e-6)
    small = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1e-5]])
    assert angular_change(*small).item() == pytest.approx(1e-5 / math.pi, rel=1e-3)


def test_untouched_layers_do_not_change(tiny_llava: Loaded, tiny_llava_dir: Path) -> None:
    model = tiny_llava.model
    layers = model.model.language_model.layers
    with torch.no_grad():
        layers[1].self_attn.q_proj.weight.mul_(3)
        for one in (part for part in layers[2].modules() if isinstance(part, torch.nn.Linear)):
            one.weight.neg_()
    found = run_weights(model, find_anatomy(model), CHANGES, tiny_llava_dir)
    np.testing.assert_allclose(found["parameter-change"], [0, 2 / 7, 2, 0], atol=1e-6)
    np.testing.assert_allclose(found["angular-change"], [0, 0, 1, 0], atol=1e-6)


def test_planted_signal_stands_out(llava_builder: Callable[..., Loaded]) -> None:
    model = llava_builder(num_layers=6).model
    generator = torch.Generator().manual_seed(2)
    layers = model.model.language_model.layers
    with torch.no_grad():
        for index in (2, 4):
            for one in (part for part in layers[index].modules() if isinstance(part, torch.nn.Linear)):
                # Five directions of equal strength well above the noise.
                left, right = (
                    torch.linalg.qr(torch.randn(size, 5, generator=generator))[0] for size in one.weight.shape
                )
                one.weight.mul_(0.1).add_(left @ right.T * 5)
    found = run_weights(model, find_anatomy(model), [SPECTRUM_SNR], None)["spectrum-snr"]
    assert set(np.argsort(-found)[:2]) == {2, 4}
    assert found.mean() == pytest.approx(1)


def test_closed_forms_of_the_ratio() -> None:
    values = torch.tensor([1.0] * 6 + [2.0] * 6 + [10.0], dtype=torch.float64)
    # Quartiles 1 and 2, so that a square matrix has its edge at 2 / 1.349: the values of 2 and 10 are signal.
    assert signal_to_noise(values, 13, 13).item() == pytest.approx(22 / 6 / 10)
    # A flat spectrum has no edge: the smallest value counts as noise.
    assert signal_to_noise(torch.tensor([2.0, 2.0, 2.0, 2.0]), 4, 4).item() == 0
    weight = torch.randn(5, 17, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(singular_values(weight).flip(0), np.linalg.svd(weight, compute_uv=False), rtol=1e-5)


def test_an_adapter_counts_as_part_of_the_weights(tiny_llava: Loaded, tiny_llava_dir: Path, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False, alpha_pattern={"q_proj": 20}
    )
    wrapped = get_peft_model(tiny_llava.model, config).eval()
    wrapped.peft_config["default"].base_model_name_or_path = str(tiny_llava_dir)
    wrapped.save_pretrained(tmp_path / "adapter")
    held = run_weights(unwrap(wrapped), find_anatomy(wrapped), EVERY, tiny_llava_dir)
    stored = run_stored_weights(tmp_path / "adapter", EVERY, tiny_llava_dir)
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    plain = run_weights(merged, find_anatomy(merged), EVERY, tiny_llava_dir)
    whole = run_stored_weights(tmp_path / "merged", EVERY, tiny_llava_dir)
    assert plain["parameter-change"].min() > 0.1
    for name, values in plain.items():
        for other in (held, stored, whole):
            np.testing.assert_allclose(other[name], values, atol=1e-5)
    # Compared with the adapter itself, nothing has changed.
    same = run_stored_weights(tmp_path / "merged", CHANGES, tmp_path / "adapter")
    np.testing.assert_allclose(same["parameter-change"], 0, atol=1e-6)


def test_rank_stabilised_scale(tiny_llava: Loaded, tiny_llava_dir: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj"], init_lora_weights=False, use_rslora=True)
    wrapped = get_peft_model(tiny_llava.model, config).eval()
    wrapped.peft_config["default"].base_model_name_or_path = str(tiny_llava_dir)
    wrapped.save_pretrained(tmp_path)
    held = {name: weight for _, name, weight in layer_matrices(unwrap(wrapped), find_anatomy(wrapped))}
    stored = StoredMatrices(tmp_path)
    assert held.keys() == stored.shapes.keys()
    for _, name, weight in stored:
        torch.testing.assert_close(weight, held[name])


def test_errors_in_words(
    tiny_llava: Loaded, tiny_llava_dir: Path, llava_builder: Callable[..., Loaded], tmp_path: Path
) -> None:
    model, anatomy = tiny_llava.model, find_anatomy(tiny_llava.model)
    with pytest.raises(ModelError) as caught:
        run_weights(model, anatomy, CHANGES, None)
    assert str(caught.value) == (
        "parameter-change compares with the checkpoint before tuning, and none was named\n"
        "  allowed: a folder with the base model's safetensors\n"
        "  next:    set analyze.base, or leave that scorer out"
    )
    with pytest.raises(ModelError, match=f"no model folder at {tmp_path / 'nowhere'}"):
        run_weights(model, anatomy, CHANGES, tmp_path / "nowhere")
    deeper = llava_builder(num_layers=5).model
    with pytest.raises(ModelError) as caught:
        run_weights(deeper, find_anatomy(deeper), CHANGES, tiny_llava_dir)
    assert str(caught.value) == (
        "the base checkpoint has 4 decoder layers, the tuned 5\n"
        "  allowed: two checkpoints of one model, before and after tuning\n"
        "  next:    check analyze.base"
    )
    wider = llava_builder().model
    wider.model.language_model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.raises(ModelError, match=r"mlp.up_proj.weight has shape \(3, 3\) in the tuned model and \(64, 32\) in"):
        run_weights(wider, find_anatomy(wider), CHANGES, tiny_llava_dir)
    del model.model.language_model.layers[3].mlp.gate_proj
    with pytest.raises(ModelError, match=r"base checkpoint has \S+3.mlp.gate_proj.weight, and the tuned model has not"):
        run_weights(model, anatomy, CHANGES, tiny_llava_dir)


def test_adapters_that_are_no_plain_difference_are_refused(
    tiny_llava: Loaded, tiny_llava_dir: Path, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    wrapped = get_peft_model(tiny_llava.model, config).eval()
    with pytest.raises(ModelError, match="can't be read as a difference of weights"):
        run_weights(unwrap(wrapped), find_anatomy(wrapped), [SPECTRUM_SNR], None)
    wrapped.peft_config["default"].base_model_name_or_path = str(tiny_llava_dir)
    wrapped.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is no plain LoRA adapter"):
        StoredMatrices(tmp_path)


def test_a_damaged_adapter_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json is not JSON"):
        StoredMatrices(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"adapter_config\.json holds list, not an object"):
        StoredMatrices(tmp_path)
