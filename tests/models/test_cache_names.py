"""A cache of keys and values under either of its names in transformers: given, taken out, and read from outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from striate.models.interventions.kv_cache_names import (
    CURRENT,
    NAMES,
    cache_name,
    cache_of,
    given_cache,
    model_cache_name,
    without_cache,
)

if TYPE_CHECKING:
    from striate.models.io.load import Loaded


class Before(nn.Module):
    def forward(self, x: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        return x


class Since(nn.Module):
    def forward(self, x: Any, cache: Any = None, **kwargs: Any) -> Any:
        return x


class Silent(nn.Module):
    def forward(self, x: Any, **kwargs: Any) -> Any:
        return x


@pytest.mark.parametrize(("module", "name"), [(Before(), "past_key_values"), (Since(), "cache"), (Silent(), CURRENT)])
def test_a_forward_method_says_its_name(module: nn.Module, name: str) -> None:
    assert cache_name(module.forward) == model_cache_name(module) == name


def test_a_model_of_this_transformers_takes_and_gives_its_cache(tiny_llava: Loaded) -> None:
    model: Any = tiny_llava.model
    ids = torch.tensor([[5, 6, 7]])
    first = model(input_ids=ids, use_cache=True)
    cache = cache_of(first)
    assert cache.get_seq_length() == 3
    again = model(input_ids=ids[:, :1], **{model_cache_name(model): cache}, use_cache=True)
    assert cache_of(again).get_seq_length() == 4
    whole = model(input_ids=torch.cat([ids, ids[:, :1]], dim=1)).logits[:, -1]
    torch.testing.assert_close(again.logits[:, -1], whole)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert model_cache_name(wrapped) == model_cache_name(model)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_outputs_under_both_names(name: str) -> None:
    kept = object()
    assert given_cache({"x": 1, name: kept}) is kept
    assert given_cache({"x": 1, name: None}) is None
    assert without_cache({"x": 1, name: kept}) == {"x": 1}
    assert cache_of(ModelOutput({name: kept})) is kept
    assert cache_of(BaseModelOutputWithPast()) is None


def test_an_output_is_not_asked_for_the_old_name_where_it_has_the_new_one() -> None:
    asked = []

    class Output(dict[str, Any]):
        def __contains__(self, name: object) -> bool:
            asked.append(name)
            return super().__contains__(name)

    assert cache_of(Output(cache="kept")) == "kept"
    assert asked == ["cache"]
