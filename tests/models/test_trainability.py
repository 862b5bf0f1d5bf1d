"""Exactly the chosen tensors are open, receive gradients, and are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel

from striate.artifacts import Region
from striate.errors import TrainingError
from striate.models.io.load import Loaded
from striate.models.structure.anatomy import component_of, find_anatomy, layer_of
from striate.models.trainable.apply import apply_region, chosen_parameters, lora_config
from striate.models.trainable.beside import Beside
from striate.models.trainable.counts import count_trainable, describe
from striate.models.trainable.gradient_proof import prove_trainable

FROZEN = Beside("frozen")
Batch = dict[str, Any]
Built = tuple[Any, Batch]


def _region(*layers: int, num_layers: int = 4) -> Region:
    return Region(layers=layers, num_layers=num_layers, spec="ids:" + ",".join(map(str, layers)))


def _batch(inputs: Batch) -> Batch:
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    return {**inputs, "labels": labels}


@pytest.fixture
def batch(tiny_llava: Loaded) -> Batch:
    texts = ["<image>\nWhat colour? red", "<image>\nHow many? 1"]
    pictures = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    tokens = tiny_llava.processor.tokenizer(
        [text.replace("<image>", "<image>" * 4) for text in texts], padding=True, return_tensors="pt"
    )
    ids = tokens["input_ids"]
    return {**_batch({"input_ids": ids}), "attention_mask": tokens["attention_mask"], "pixel_values": pictures}


def _lora(model: Any, region: Region, **options: Any) -> PeftModel:
    wrapped = peft.get_peft_model(model, lora_config(model, region, r=4, alpha=8, dropout=0.0, **options))
    apply_region(wrapped, region, "lora", options.get("projector", "full"))
    return wrapped


def test_full_opens_exactly_the_region_and_the_projector(family: Built) -> None:
    model, inputs = family
    region = _region(1, 4, num_layers=6)
    anatomy = find_anatomy(model)
    apply_region(model, region, "full")
    for name, parameter in model.named_parameters():
        expected = component_of(anatomy, name) == "projector" or layer_of(anatomy, name) in (1, 4)
        assert parameter.requires_grad == expected, name
    proof = prove_trainable(model, region, _batch(inputs))
    assert "tensors in 2 of 6 decoder layers and" in proof


def test_lora_puts_adapters_on_the_regions_linears_and_nowhere_else(family: Built) -> None:
    model, inputs = family
    region = _region(1, 3, num_layers=6)
    anatomy = find_anatomy(model)
    linears = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and layer_of(anatomy, name) in (1, 3)
    }
    wrapped = _lora(model, region)
    adapted = {
        name.removeprefix("base_model.model.").partition(".lora_A.")[0]
        for name, _ in wrapped.named_parameters()
        if ".lora_A." in name
    }
    assert adapted == linears
    assert not [name for name, _ in wrapped.named_parameters() if "lora_" in name and "vis" in name]
    assert "the other" in prove_trainable(wrapped, region, _batch(inputs))


def test_layers_to_transform_alone_would_adapt_the_vision_encoder(tiny_llava: Loaded) -> None:
    naive = peft.LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1])
    wrapped = peft.get_peft_model(tiny_llava.model, naive)
    assert [name for name, _ in wrapped.named_parameters() if "lora_" in name and "vision_tower" in name]


def test_lora_config_is_the_papers_by_default(tiny_llava: Loaded) -> None:
    config = lora_config(tiny_llava.model, _region(2))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (128, 256, 0.05, "none")
    kinds = ["q", "k", "v", "o", "gate", "up", "down"]
    assert {name.rpartition(".")[2] for name in config.target_modules} == {f"{kind}_proj" for kind in kinds}
    assert len(config.target_modules) == 7
    assert all(name.startswith("model.language_model.layers.2.") for name in config.target_modules)
    assert config.modules_to_save == ["model.multi_modal_projector"]
    assert lora_config(tiny_llava.model, _region(2), projector="frozen").modules_to_save is None


def test_many_targets_stay_exact(family_builder: Callable[[str], Built]) -> None:
    # PEFT shortens long target lists to suffixes: with 35 names it must not reach the vision encoder.
    model, inputs = family_builder("llava")
    region = _region(0, 1, 2, 3, 5, num_layers=6)
    wrapped = _lora(model, region)
    modules = {name.partition(".lora_A")[0] for name, _ in wrapped.named_parameters() if "lora_A" in name}
    assert len(modules) == 35
    assert prove_trainable(wrapped, region, _batch(inputs)).startswith("70 tensors in 5 of 6 decoder layers and 4 ")


def test_counts_add_up_and_speak(tiny_llava: Loaded) -> None:
    total = sum(parameter.numel() for parameter in tiny_llava.model.parameters())
    trainable = apply_region(tiny_llava.model, _region(0, 2))
    opened = sum(parameter.numel() for parameter in tiny_llava.model.parameters() if parameter.requires_grad)
    assert (trainable.total, trainable.trainable) == (total, opened)
    rows = {row.component: row for row in trainable.components}
    assert list(rows) == ["vision encoder", "projector", "embeddings", "decoder layer", "LM head", "other"]
    assert rows["vision encoder"].trainable == rows["embeddings"].trainable == rows["LM head"].trainable == 0
    assert rows["projector"].trainable == rows["projector"].total == 16 * 32 + 32 + 32 * 32 + 32
    assert [row.trainable > 0 for row in trainable.layers] == [True, False, True, False]
    assert sum(row.total for row in trainable.layers) == rows["decoder layer"].total
    assert [row.tensors for row in trainable.layers] == [9, 0, 9, 0]
    assert describe(trainable) == (
        "20,160 of 75,808 parameters train (26.6%, method full): projector 1,600 of 1,600; decoder layers 18,560 of"
        " 37,120. 2 of 4 decoder layers: 0, 2. All else is frozen."
    )


def test_lora_counts_the_projector_once(tiny_llava: Loaded) -> None:
    before = sum(parameter.numel() for parameter in tiny_llava.model.parameters())
    wrapped = _lora(tiny_llava.model, _region(1))
    trainable = count_trainable(wrapped, _region(1), "lora")
    adapters = sum(parameter.numel() for name, parameter in wrapped.named_parameters() if "lora_" in name)
    assert trainable.total == before + adapters
    assert trainable.trainable == adapters + 1600
    assert describe(trainable).endswith("1 of 4 decoder layers: 1. All else is frozen.")


def test_projector_may_stay_frozen(tiny_llava: Loaded, batch: Batch) -> None:
    trainable = apply_region(tiny_llava.model, _region(1), projector="frozen")
    assert {row.component for row in trainable.components if row.trainable} == {"decoder layer"}
    proof = prove_trainable(tiny_llava.model, _region(1), batch, FROZEN)
    assert proof.startswith("9 tensors in 1 of 4 decoder layers received finite gradients; the other ")
    wrapped = _lora(tiny_llava.model, _region(1), projector="frozen")
    assert prove_trainable(wrapped, _region(1), batch, FROZEN).startswith("14 tensors in 1 of 4")


def test_the_projector_alone_trains_in_full(tiny_llava: Loaded, batch: Batch) -> None:
    none = Region(layers=(), num_layers=4, spec="none")
    apply_region(tiny_llava.model, none)
    assert prove_trainable(tiny_llava.model, none, batch).startswith("4 tensors of the projector received")


def test_the_proof_leaves_no_trace(tiny_llava: Loaded, batch: Batch) -> None:
    model = tiny_llava.model
    wrapped = peft.get_peft_model(model, lora_config(model, _region(1), r=4, dropout=0.5))
    apply_region(wrapped, _region(1), "lora")
    wrapped.train()
    model.model.vision_tower.eval()
    modes = [module.training for module in wrapped.modules()]
    weights = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    prove_trainable(wrapped, _region(1), batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in wrapped.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in wrapped.state_dict().items())
    assert [module.training for module in wrapped.modules()] == modes


@pytest.mark.parametrize("layers", [(3,), (0,)])
def test_reentrant_checkpointing_is_caught(tiny_llava: Loaded, batch: Batch, layers: Sequence[int]) -> None:
    model = tiny_llava.model.train()
    apply_region(model, _region(*layers), projector="frozen")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.disable_input_require_grads()
    with pytest.raises(TrainingError) as caught:
        prove_trainable(model, _region(*layers), batch, FROZEN)
    assert "non-reentrant" in str(caught.value)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("layers", [(3,), (0,), (1, 2)])
def test_non_reentrant_checkpointing_passes(tiny_llava: Loaded, batch: Batch, layers: Sequence[int]) -> None:
    model = tiny_llava.model.train()
    apply_region(model, _region(*layers), projector="frozen")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert "finite gradients" in prove_trainable(model, _region(*layers), batch, FROZEN)


def test_a_text_only_batch_does_not_train_the_projector(tiny_llava: Loaded) -> None:
    apply_region(tiny_llava.model, _region(1))
    ids = torch.tensor([[10, 11, 12, 13, 14]])
    with pytest.raises(TrainingError) as caught:
        prove_trainable(tiny_llava.model, _region(1), {"input_ids": ids, "labels": ids})
    text = str(caught.value)
    assert "4 chosen tensors received no gradient: model.multi_modal_projector.linear_1.bias" in text
    assert "use a batch with a picture in it" in text


def test_wrongly_opened_and_closed_tensors_are_named(tiny_llava: Loaded, batch: Batch) -> None:
    model = tiny_llava.model
    apply_region(model, _region(1))
    model.model.vision_tower.requires_grad_(True)
    with pytest.raises(TrainingError, match=r"tensors outside the choice would train: model\.vision_tower\."):
        prove_trainable(model, _region(1), batch)
    apply_region(model, _region(1))
    model.model.language_model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    with pytest.raises(TrainingError, match=r"1 chosen tensors are frozen: model\.language_model\.layers\.1\.mlp\.up"):
        prove_trainable(model, _region(1), batch)


def test_gradients_that_are_not_finite_are_named(tiny_llava: Loaded, batch: Batch) -> None:
    apply_region(tiny_llava.model, _region(1))
    weight = tiny_llava.model.model.language_model.layers[1].mlp.up_proj.weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"not finite: model\.language_model\.layers\.1\.mlp\.up_proj\.weight"):
        prove_trainable(tiny_llava.model, _region(1), batch)


def test_a_dead_adapter_is_named(tiny_llava: Loaded, batch: Batch) -> None:
    wrapped = _lora(tiny_llava.model, _region(1))
    name = next(name for name, _ in wrapped.named_parameters() if "lora_B" in name)
    dict(wrapped.named_parameters())[name].register_hook(torch.zeros_like)
    with pytest.raises(TrainingError, match="1 chosen tensors received only zeros as gradients") as caught:
        prove_trainable(wrapped, _region(1), batch)
    assert name in str(caught.value)


def test_a_batch_without_answers_is_refused(tiny_llava: Loaded, batch: Batch) -> None:
    apply_region(tiny_llava.model, _region(1))
    with pytest.raises(TrainingError, match="the batch of the proof has no labels"):
        prove_trainable(tiny_llava.model, _region(1), {key: batch[key] for key in batch if key != "labels"})
    blank = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(TrainingError, match="the loss of the first batch is nan"):
        prove_trainable(tiny_llava.model, _region(1), blank)


def test_nothing_to_train_is_refused(tiny_llava: Loaded) -> None:
    none = Region(layers=(), num_layers=4, spec="none")
    with pytest.raises(TrainingError) as caught:
        apply_region(tiny_llava.model, none, projector="frozen")
    assert str(caught.value) == (
        "region 'none' with projector frozen leaves nothing to train\n"
        "  allowed: a region of at least one layer, or a projector that trains\n"
        "  next:    choose a larger region, or use train.projector=full"
    )
    with pytest.raises(TrainingError, match="region 'none' gives LoRA no linear layer to adapt"):
        lora_config(tiny_llava.model, none)


def test_a_region_of_another_depth_is_refused(tiny_llava: Loaded) -> None:
    other = Region(layers=(0,), num_layers=32, spec="uniform:3%")
    for call in (apply_region, lora_config, chosen_parameters):
        with pytest.raises(TrainingError, match="region 'uniform:3%' is for 32 decoder layers, the model has 4"):
            call(tiny_llava.model, other)


def test_methods_must_fit_the_model(tiny_llava: Loaded) -> None:
    with pytest.raises(TrainingError, match="unknown method 'dora'"):
        apply_region(tiny_llava.model, _region(1), "dora")
    with pytest.raises(TrainingError, match="method lora needs adapters, and the model has none"):
        apply_region(tiny_llava.model, _region(1), "lora")
    wrapped = _lora(tiny_llava.model, _region(1))
    with pytest.raises(TrainingError, match="method full would train the weights under the model's adapters"):
        apply_region(wrapped, _region(1), "full")
    with pytest.raises(TrainingError, match="the model has adapters already"):
        lora_config(wrapped, _region(1))


@pytest.mark.parametrize("bad", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_lora_settings_out_of_range_are_refused(tiny_llava: Loaded, bad: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="LoRA settings"):
        lora_config(tiny_llava.model, _region(1), **bad)


def test_quantised_weights_are_refused_in_full(tiny_llava: Loaded) -> None:
    layer = tiny_llava.model.model.language_model.layers[1].mlp
    layer.up_proj.weight = torch.nn.Parameter(torch.zeros(64, 32, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TrainingError, match=r"1 chosen tensors are quantised .*layers\.1\.mlp\.up_proj\.weight"):
        apply_region(tiny_llava.model, _region(1))
