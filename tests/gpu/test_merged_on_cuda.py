"""Products that several linear layers share, compiled for CUDA: gradients, memory, kernels."""

from __future__ import annotations

from typing import Any, Literal

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from striate.training.compile.regional import FastLayers

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Method = Literal["frozen", "lora", "full"]


class Stack(nn.Module):
    """Two decoder layers."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        config = LlamaConfig(
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=heads,
            vocab_size=64,
        )
        config._attn_implementation = "sdpa"
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, index) for index in range(2)])
        self.rotary = LlamaRotaryEmbedding(config)

    def forward(self, hidden: Tensor) -> Tensor:
        places = self.rotary(hidden, torch.arange(hidden.shape[1], device=hidden.device)[None])
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=places, attention_mask=None)
        return hidden


def stack(method: Method, heads: int) -> Any:
    """Return the layers on the device, in bfloat16; what trains in float32."""
    torch.manual_seed(0)
    model: Any = Stack(heads).to("cuda", torch.bfloat16).requires_grad_(False)
    if method == "lora":
        adapters = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=MATRICES)
        model = peft.get_peft_model(model, adapters).base_model.model
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
    if method == "full":
        model.layers.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


def step(model: Any, hidden: Tensor) -> tuple[float, list[Tensor]]:
    """Return GiB kept for the backward pass, and the gradients."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        output = model(hidden)
    kept = (torch.cuda.memory_allocated() - before) / 2**30
    found = [hidden, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    return kept, list(torch.autograd.grad(output.float().square().mean(), found))


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("method", ["frozen", "lora", "full"])
def test_gradients_and_memory_of_layers_one_by_one(method: Method, heads: int) -> None:
    """Same gradients but for rounding, no more memory kept, fewer kernels."""
    hidden = torch.randn(8, 256, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    results: list[Any] = []
    for merged in (False, True):
        model, said = stack(method, heads), list[str]()
        layers = FastLayers(model.layers, say=said.append, merged=merged)
        layers.install()
        # The first two steps compare, compile and fill caches.
        step(model, hidden)
        step(model, hidden)
        kept, gradients = step(model, hidden)
        with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as found:
            step(model, hidden)
            torch.cuda.synchronize()
        kernels = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in found.events())
        assert not said
        assert all(function.merged == merged for function in layers.functions.values())
        layers.remove()
        results.append((kept, kernels, gradients))
    (kept, kernels, expected), (found_kept, found_kernels, gradients) = results
    assert found_kept <= 1.03 * kept
    assert found_kernels < kernels
    for mine, theirs in zip(gradients, expected, strict=True):
        assert float((mine - theirs).float().norm()) <= 0.03 * float(theirs.float().norm())
