"""The self-test passes on what was saved and sees each way in which it can differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from striate.errors import ModelError
from striate.models.io.load import Loaded, load_model
from striate.models.io.save import save_model
from striate.models.structure.anatomy import decoder_layers
from striate.models.surgery.remove_layers import remove_layers
from striate.models.surgery.roundtrip_check import self_test

Batch = dict[str, Any]


def test_the_self_test_sees_another_weight(tiny_llava: Loaded, tmp_path: Path, question: Batch) -> None:
    save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "saved")
    assert self_test(tiny_llava.model, tmp_path / "saved", question, tiny_llava.processor).prompts == 1
    with torch.no_grad():
        decoder_layers(tiny_llava.model)[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(ModelError, match=r"the model saved at .*saved is not the one in memory: its logits move by"):
        self_test(tiny_llava.model, tmp_path / "saved", question)


def test_the_self_test_sees_layers_that_kept_their_number(
    tiny_llava: Loaded, tmp_path: Path, question: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "saved")
    from striate.models.surgery import roundtrip_check as module

    def with_a_wrong_number(*args: Any, **kwargs: Any) -> Any:
        model = module_load(*args, **kwargs)
        decoder_layers(model)[2].self_attn.layer_idx = 1
        return model

    module_load = module.load_weights
    monkeypatch.setattr(module, "load_weights", with_a_wrong_number)
    with pytest.raises(ModelError, match=r"answer 0 is another without the key-value cache, from new token \d"):
        self_test(tiny_llava.model, tmp_path / "saved", question)


def test_the_self_test_sees_another_processor(tiny_llava: Loaded, tmp_path: Path, question: Batch) -> None:
    save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "saved")
    (tmp_path / "saved" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ModelError, match="the saved chat template is another"):
        self_test(tiny_llava.model, tmp_path / "saved", question, tiny_llava.processor)


def test_the_self_test_puts_modes_back(tiny_llava: Loaded, tmp_path: Path, question: Batch) -> None:
    model = tiny_llava.model.train()
    model.model.vision_tower.eval()
    save_model(model, tiny_llava.processor, tmp_path / "saved")
    modes = [module.training for module in model.modules()]
    self_test(model, tmp_path / "saved", question)
    assert [module.training for module in model.modules()] == modes


def test_the_self_test_holds_in_bfloat16(tiny_llava_dir: Path, tmp_path: Path, question: Batch) -> None:
    loaded = load_model(tiny_llava_dir, device="cpu", dtype="bfloat16")
    remove_layers(loaded.model, [2])
    save_model(loaded.model, loaded.processor, tmp_path / "saved")
    assert self_test(loaded.model, tmp_path / "saved", question, loaded.processor).max_logit_difference == 0


def test_an_answer_never_asks_for_a_picture(tiny_llava: Loaded, tmp_path: Path, question: Batch) -> None:
    model = tiny_llava.model
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[model.config.image_token_id] = 1.0
    save_model(model, tiny_llava.processor, tmp_path / "saved")
    assert self_test(model, tmp_path / "saved", question).cached_equals_uncached


def test_where_weights_lie_is_no_difference(
    tiny_llava: Loaded, tmp_path: Path, question: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_llava.model, tiny_llava.processor, tmp_path / "saved")
    from striate.models.surgery import roundtrip_check as module

    def as_a_processor_may(head: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
        return output + (head.weight.data_ptr() % 64) * 1e-7

    def beside_a_boundary(*args: Any, **kwargs: Any) -> Any:
        model = module_load(*args, **kwargs)
        weight = model.lm_head.weight
        weight.data = torch.empty(weight.numel() + 1)[1:].view_as(weight).copy_(weight)
        model.lm_head.register_forward_hook(as_a_processor_may)
        return model

    module_load = module.load_weights
    monkeypatch.setattr(module, "load_weights", beside_a_boundary)
    tiny_llava.model.lm_head.register_forward_hook(as_a_processor_may)
    assert self_test(tiny_llava.model, tmp_path / "saved", question).max_logit_difference == 0
    decoder_layers(tiny_llava.model)[1].mlp.up_proj.weight.data[0, 0] += 1e-3
    with pytest.raises(ModelError, match="its logits move by"):
        self_test(tiny_llava.model, tmp_path / "saved", question)
