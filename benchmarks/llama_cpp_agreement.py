#!/usr/bin/env python3
"""How often llama.cpp's greedy answers about pictures are transformers', by number format of the language model.

    python benchmarks/llama_cpp_agreement.py prepare OUT [--steps 1200] [--llm RUN/pruned]
    python benchmarks/llama_cpp_agreement.py compare OUT [--types f16 q8_0 q4_k] [--pictures 40]

llama.cpp has no graph for the built-in LVLM's encoder. `prepare` puts a SigLIP in its place, taught to give the same
image tokens on easy-VQA's training pictures (mean squared error; the language model takes no part), and writes the
LLaVA to OUT; `--llm` takes the language model of a pruned built-in LVLM. `compare` exports OUT and asks both, in
llama.cpp's own chat, three questions about each picture. Prints one JSON line a format. A CPU is enough.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from llama_cpp_server import llama_server
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, LlavaProcessor, SiglipVisionConfig, SiglipVisionModel
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from striate.demo.places import builtin_model, locate_data
from striate.models.convert.compose import join
from striate.models.convert.gguf.gguf_folder import export_gguf
from striate.models.io.components import Sight
from striate.models.io.load import load_model
from striate.models.io.save import save_model
from striate.progress import Silent

SIZE, PATCH, TOKENS = 224, 32, 49
QUESTIONS = ("What color is the shape?", "What shape is in the image?", "Is there a red shape?")
BATCH, HELD_OUT, NEW_TOKENS = 16, 100, 24


def pictures(name: str) -> list[Path]:
    """Return easy-VQA's pictures whose names begin with `name`, in alphabetical order."""
    return sorted(locate_data("builtin:easy-vqa", Silent()).rglob(f"{name}*.png"))


def taught(model: Any, processor: Any, steps: int) -> tuple[SiglipVisionModel, nn.Module]:
    """Return an encoder and a projector that give the image tokens of `model`, and print how near they come."""
    images = [Image.open(path).convert("RGB") for path in pictures("train-")]
    target_NTD = torch.cat([tokens_of(model, processor, images[at : at + 32]) for at in range(0, len(images), 32)])
    eye = image_processor()
    pixels = torch.cat([eye(image, return_tensors="pt")["pixel_values"] for image in images])
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    encoder = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=SIZE, patch_size=PATCH))
    width = target_NTD.shape[-1]
    projector = nn.Sequential(nn.Linear(128, width), nn.GELU(), nn.Linear(width, width))
    nn.init.zeros_(projector[2].bias).data += target_NTD.mean((0, 1))
    parameters = [*encoder.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(0, len(pixels) - HELD_OUT, (BATCH,))
        loss = functional.mse_loss(projector(seen(encoder, pixels[chosen])), target_NTD[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        mean = target_NTD.mean((0, 1))
        found = projector(seen(encoder, pixels[-HELD_OUT:]))
        cosine = functional.cosine_similarity(found - mean, target_NTD[-HELD_OUT:] - mean, dim=-1).mean()
    print(json.dumps({"pictures": len(images), "steps": steps, "held_out_cosine": round(float(cosine), 3)}))
    return encoder.eval(), projector


def seen(encoder: SiglipVisionModel, pixels: Tensor) -> Tensor:
    """Return the last hidden state but one."""
    states: Tensor = encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    return states


def tokens_of(model: Any, processor: Any, images: list[Image.Image]) -> Tensor:
    """Return the image tokens that the language model gets, shape (N, T, D)."""
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.model.get_image_features(pixel_values=pixels)
    found = getattr(features, "pooler_output", features)
    stacked: Tensor = torch.stack(list(found)) if isinstance(found, list | tuple) else found
    return stacked.reshape(len(images), TOKENS, -1)


def image_processor() -> Any:
    """Return LLaVA's own, for SigLIP."""
    square = {"height": SIZE, "width": SIZE}
    return LlavaImageProcessorPil(
        do_pad=True, size=square, crop_size=square, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def prepare(out: Path, steps: int, llm: Path | None) -> None:
    """Write the LLaVA to `out`."""
    loaded = load_model(builtin_model(None, None, Silent()), device="cpu")
    encoder, projector = taught(loaded.model, loaded.processor, steps)
    held = load_model(llm, device="cpu", merge=True).model if llm else loaded.model
    language = LlamaForCausalLM(held.config.text_config)
    language.model.load_state_dict(held.model.language_model.state_dict())
    language.lm_head.weight = held.lm_head.weight
    language.tie_weights()
    words = loaded.processor.tokenizer
    model = join(language, encoder, words, Sight(-2, "full", TOKENS, 0, PATCH))
    for linear, ours in (("linear_1", projector[0]), ("linear_2", projector[2])):
        getattr(model.model.multi_modal_projector, linear).load_state_dict(ours.state_dict())
    model.generation_config = held.generation_config
    processor = LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=loaded.processor.chat_template,
        image_token="<image>",
    )
    save_model(model.half(), processor, out)


def compare(folder: Path, kinds: list[str], count: int) -> None:
    """Print how many answers are equal, a line a format."""
    loaded = load_model(folder, device="cpu", dtype="float32")
    images = [Image.open(path).convert("RGB") for path in pictures("test-")[:count]]
    asked = [(image, question) for image in images for question in QUESTIONS]
    ours = [reply(loaded.model, loaded.processor, image, question) for image, question in asked]
    for kind in kinds:
        with tempfile.TemporaryDirectory() as place:
            done = export_gguf(loaded.model, loaded.processor, Path(place) / "gguf", kind=kind)
            with llama_server(done.language, done.vision) as server:
                replies = [server.chat(question, image, NEW_TOKENS) for image, question in asked]
        theirs = [found["choices"][0]["message"]["content"] for found in replies]
        equal = sum(left == right for left, right in zip(ours, theirs, strict=True))
        size = done.sizes[done.language.name]
        print(json.dumps({"type": kind, "equal": equal, "of": len(asked), "different": len(set(ours)), "bytes": size}))


def reply(model: Any, processor: Any, image: Image.Image, question: str) -> str:
    """Return transformers' greedy reply."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return str(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("prepare")
    first.add_argument("out", type=Path)
    first.add_argument("--steps", type=int, default=1200)
    first.add_argument("--llm", type=Path)
    second = verbs.add_parser("compare")
    second.add_argument("folder", type=Path)
    second.add_argument("--types", nargs="+", default=["f16", "q8_0", "q4_k"])
    second.add_argument("--pictures", type=int, default=40)
    given = parser.parse_args()
    if given.verb == "prepare":
        prepare(given.out, given.steps, given.llm)
    else:
        compare(given.folder, given.types, given.pictures)


if __name__ == "__main__":
    main()
