#!/usr/bin/env python3
"""Align the built-in LVLM: train projector and vision encoder on rendered pictures and photo packs, LLM frozen.

This makes striate/demo/aligned.safetensors. `prepare` shrinks the packs to `--side` pixels on any machine; `train`
wants one GPU. Both read LLaVA-format folders (PACK/train.json). Frozen decoder layers run as one pure function,
compiled once.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import random
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch.nn import functional

from striate.demo.build import build

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from rendered_scenes import GENERATORS, Supplies, render, words_of

SIDE, IGNORE = 224, -100
# Tokens beside those of the picture.
TEXT = 79
SHARES = {"scene": 0.36, "counting": 0.12, "reading": 0.28, "two_lines": 0.12, "bars": 0.12}


def prepare(data: Path, packs: list[str], side: int, out: Path) -> None:
    """Write the packs' training pictures (square, WebP) and questions into one zip file."""
    rows = []
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for pack in packs:
            turns: dict[str, list[tuple[str, str, str]]] = {}
            for sample in json.loads((data / pack / "train.json").read_text()):
                texts = [turn["value"].replace("<image>\n", "") for turn in sample["conversations"]]
                pairs = zip(texts[::2], texts[1::2], strict=True)
                turns.setdefault(sample["image"], []).extend((q, a, sample["task"]) for q, a in pairs)
            for name, questions in turns.items():
                picture = ImageOps.exif_transpose(Image.open(data / pack / name)).convert("RGB")
                buffer = io.BytesIO()
                picture.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "WEBP", quality=86)
                archive.writestr(f"{pack}/{name}.webp", buffer.getvalue())
                rows.append({"pack": pack, "image": f"{pack}/{name}.webp", "questions": questions})
        archive.writestr("questions.json", json.dumps(rows))
    print(f"{len(rows)} pictures, {out.stat().st_size / 2**20:.1f} MiB")


class Encoder:
    """Turns a picture's questions into token ids and labels of fixed length."""

    def __init__(self, tokenizer: Any, image_token: int, side: int) -> None:
        self.tokenizer = tokenizer
        tokens = (side // 32) ** 2
        self.length = tokens + TEXT
        self.head = self.ids("<|im_start|>user\n") + [image_token] * tokens + self.ids("\n")
        self.next = self.ids("\n<|im_start|>user\n")
        self.reply = self.ids("<|im_end|>\n<|im_start|>assistant\n")
        self.end = self.ids("<|im_end|>")

    def ids(self, text: str) -> list[int]:
        """Return the token ids of `text` alone."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def __call__(self, questions: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and labels (`length`) with as many of the turns as fit."""
        ids, labels = list(self.head), [IGNORE] * len(self.head)
        for index, (question, answer) in enumerate(questions):
            asked = (self.next if index else []) + self.ids(question) + self.reply
            told = self.ids(answer) + self.end
            if len(ids) + len(asked) + len(told) <= self.length:
                ids, labels = ids + asked + told, labels + [IGNORE] * len(asked) + told
        padding = self.length - len(ids)
        return np.array(ids + [0] * padding, np.int32), np.array(labels + [IGNORE] * padding, np.int32)


TOOLS: dict[str, Any] = {}


def equip(supplies: Supplies, encoder: Encoder) -> None:
    """Give a worker process its supplies and encoder, once."""
    TOOLS.update(supplies=supplies, encoder=encoder)


def draw(job: tuple[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels, ids and labels of one rendered picture."""
    kind, seed = job
    picture, questions = render(kind, seed, TOOLS["supplies"])
    shuffled = random.Random(seed).sample(questions, len(questions))
    return np.asarray(picture), *TOOLS["encoder"](shuffled)


def rendered(jobs: list[tuple[str, int]], supplies: Supplies, encoder: Encoder, workers: int) -> tuple[Any, Any, Any]:
    """Return the pixels (N, H, W, 3), ids and labels of all `jobs`, drawn in parallel."""
    pixels = torch.empty(len(jobs), supplies.side, supplies.side, 3, dtype=torch.uint8)
    ids, labels = torch.empty(2, len(jobs), encoder.length, dtype=torch.int32)
    with multiprocessing.get_context("fork").Pool(workers, equip, (supplies, encoder)) as pool:
        results = pool.imap(draw, jobs, chunksize=64)
        for index, (picture, one_ids, one_labels) in enumerate(results):
            pixels[index] = torch.from_numpy(picture.copy())
            ids[index], labels[index] = torch.from_numpy(one_ids), torch.from_numpy(one_labels)
    return pixels, ids, labels


def photos(path: Path, encoder: Encoder, seed: int) -> tuple[Any, Any, Any]:
    """Return pixels, ids and labels of a prepared zip: each picture as often as its questions fill conversations."""
    rng, pixels, where, ids, labels = random.Random(seed), [], [], [], []
    with zipfile.ZipFile(path) as archive:
        for index, row in enumerate(json.loads(archive.read("questions.json"))):
            pixels.append(np.asarray(Image.open(io.BytesIO(archive.read(row["image"]))).convert("RGB")))
            questions = [(question, answer) for question, answer, _ in row["questions"]]
            for _ in range(len(questions)):
                one_ids, one_labels = encoder(rng.sample(questions, len(questions)))
                if (one_labels != IGNORE).any():
                    where.append(index)
                    ids.append(one_ids)
                    labels.append(one_labels)
    return (
        (torch.from_numpy(np.stack(pixels)), torch.tensor(where)),
        torch.from_numpy(np.stack(ids)),
        torch.from_numpy(np.stack(labels)),
    )


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Return the second half of the last axis, negated, before the first half."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return RMS-normalised `x`, computed in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def decoder_layer(
    x_BTD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, weights: list[torch.Tensor], head: int, eps: float
) -> torch.Tensor:
    """Return a Llama decoder layer's output: a pure function of its tensors compiles once for all layers."""
    norm1, query, key, value, out, norm2, gate, up, down = weights
    batch, length, _ = x_BTD.shape
    y = norm(x_BTD, norm1, eps)
    q, k, v = (functional.linear(y, w).view(batch, length, -1, head).transpose(1, 2) for w in (query, key, value))
    q, k = q * cos + rotate(q) * sin, k * cos + rotate(k) * sin
    attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x_BTD = x_BTD + functional.linear(attended.transpose(1, 2).reshape(batch, length, -1), out)
    y = norm(x_BTD, norm2, eps)
    return x_BTD + functional.linear(functional.silu(functional.linear(y, gate)) * functional.linear(y, up), down)


class Aligner(torch.nn.Module):
    """The LVLM with a frozen bfloat16 LLM as pure functions; encoder and projector in float32 under autocast."""

    def __init__(self, model: Any, length: int, device: str, compiled: bool) -> None:
        super().__init__()
        self.vision = model.model.vision_tower.to(device, memory_format=torch.channels_last).float()
        self.projector = model.model.multi_modal_projector.to(device).float()
        llm, text = model.model.language_model.to(device, torch.bfloat16), model.config.text_config
        llm.requires_grad_(False)
        self.embeddings, self.final = llm.embed_tokens.weight, llm.norm.weight
        self.head, self.eps = text.head_dim, text.rms_norm_eps
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        self.layers = [
            [
                layer.input_layernorm.weight,
                *(getattr(layer.self_attn, name).weight for name in names),
                layer.post_attention_layernorm.weight,
                *(getattr(layer.mlp, name).weight for name in ("gate_proj", "up_proj", "down_proj")),
            ]
            for layer in llm.layers
        ]
        positions = torch.arange(length, device=device)[None]
        cos, sin = llm.rotary_emb(torch.zeros(1, length, 1, device=device, dtype=torch.bfloat16), positions)
        self.cos, self.sin = cos[:, None], sin[:, None]
        self.layer = torch.compile(decoder_layer) if compiled else decoder_layer
        self.see = torch.compile(self._see) if compiled else self._see
        self.image_token = model.config.image_token_id

    def _see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the projected image tokens (B, N, D) of uint8 pictures (B, H, W, 3)."""
        images = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
        return self.projector(self.vision(images.contiguous(memory_format=torch.channels_last)).last_hidden_state)

    def forward(
        self, pixels: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits at the answer tokens and their targets."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            seen = self.see(pixels)
        x = functional.embedding(ids, self.embeddings)
        start = 3
        x = torch.cat((x[:, :start], seen.to(x.dtype), x[:, start + seen.shape[1] :]), dim=1)
        for weights in self.layers:
            x = self.layer(x, self.cos, self.sin, weights, self.head, self.eps)
        rows, columns = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        hidden = norm(x[rows, columns], self.final, self.eps)
        return functional.linear(hidden, self.embeddings), labels[rows, columns + 1].long()


def vary(pixels: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Return the pictures, shifted a few pixels together and each a little brighter or duller."""
    dx, dy = rng.randint(-6, 6), rng.randint(-6, 6)
    shifted = torch.roll(pixels, (dy, dx), (1, 2))
    scale = torch.empty(len(pixels), 1, 1, 1, device=pixels.device).uniform_(0.85, 1.1)
    return (shifted.float() * scale).clamp_(0, 255).to(torch.uint8)


@torch.no_grad()
def answered(aligner: Aligner, pixels: Any, ids: torch.Tensor, labels: torch.Tensor, batch: int) -> float:
    """Return the share of pictures whose first answer is right to the last token, greedily."""
    first = labels.clone()
    seen = (labels != IGNORE).int()
    starts = (seen[:, 1:] > seen[:, :-1]).int().cumsum(1)
    first[:, 1:][starts > 1] = IGNORE
    right = torch.zeros(len(ids), dtype=torch.bool)
    for begin in range(0, len(ids) - len(ids) % batch, batch):
        part = slice(begin, begin + batch)
        logits, targets = aligner(pixels[part], ids[part], first[part])
        rows = (first[part, 1:] != IGNORE).nonzero(as_tuple=True)[0]
        wrong = torch.zeros(batch, device=logits.device).index_add_(0, rows, (logits.argmax(-1) != targets).float())
        right[part] = (wrong == 0).cpu()
    return right[: len(ids) - len(ids) % batch].float().mean().item()


@dataclass
class Data:
    """Training data on the device: rendered pictures, photos with several conversations each, held-out pictures."""

    pixels: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    photo_pixels: torch.Tensor
    photo_of: torch.Tensor
    photo_ids: torch.Tensor
    photo_labels: torch.Tensor
    held: dict[str, list[torch.Tensor]]

    def draw(self, batch: int, n_photos: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return a random batch: pixels, ids and labels."""
        device = self.pixels.device
        drawn = torch.randint(len(self.pixels), (batch - n_photos,), device=device)
        photo = torch.randint(len(self.photo_ids), (n_photos,), device=device)
        pixels = torch.cat((self.pixels[drawn], self.photo_pixels[self.photo_of[photo]]))
        ids = torch.cat((self.ids[drawn], self.photo_ids[photo]))
        return vary(pixels, rng), ids, torch.cat((self.labels[drawn], self.photo_labels[photo]))


def gather(args: argparse.Namespace, encoder: Encoder, device: str) -> Data:
    """Return all data, drawn in parallel and put on the device."""
    supplies = Supplies(
        words_of(encoder.tokenizer.get_vocab()), sorted(args.fonts.rglob("*.ttf")) if args.fonts else (), args.side
    )
    jobs = [(kind, seed) for kind, share in SHARES.items() for seed in range(int(args.pictures * share))]
    held_jobs = {kind: [(kind, -1 - seed) for seed in range(args.held)] for kind in GENERATORS}
    torch.set_num_threads(1)
    drawn = rendered(jobs, supplies, encoder, args.workers)
    held = {kind: rendered(one, supplies, encoder, args.workers) for kind, one in held_jobs.items()}
    (photo_pixels, photo_of), photo_ids, photo_labels = photos(args.photos, encoder, args.seed)
    tensors = [tensor.to(device) for tensor in (*drawn, photo_pixels, photo_of, photo_ids, photo_labels)]
    return Data(*tensors, held={kind: [tensor.to(device) for tensor in one] for kind, one in held.items()})


def learn(aligner: Aligner, data: Data, args: argparse.Namespace) -> tuple[int, list[tuple[int, float, float]]]:
    """Train projector and encoder; return the steps done and a log of (step, loss, seconds)."""
    groups = [
        {"params": list(aligner.projector.parameters()), "peak": args.lr},
        {"params": list(aligner.vision.parameters()), "peak": args.lr * 0.7},
    ]
    fused = data.pixels.device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=fused)
    parameters = [parameter for group in groups for parameter in group["params"]]
    rng, n_photos = random.Random(args.seed), int(args.batch * args.photo_share)
    begin, log = time.perf_counter(), []
    for step in range(args.steps):
        elapsed = time.perf_counter() - begin
        progress = max(step / args.steps, elapsed / args.seconds)
        if progress >= 1:
            return step, log
        factor = min(1.0, (step + 1) / 150) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        logits, targets = aligner(*data.draw(args.batch, n_photos, rng))
        loss = functional.cross_entropy(logits.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            log.append((step, round(loss.item(), 4), round(elapsed, 1)))
            print(*log[-1], flush=True)
    return args.steps, log


def train(args: argparse.Namespace) -> None:
    """Train on rendered pictures and photos; write the aligned weights, a record of the run, and the whole model."""
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = build(args.llm, args.vision, image_size=args.side, aligned=False)
    if args.init:
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(args.init).items()}, strict=False)
    encoder = Encoder(processor.tokenizer, model.config.image_token_id, args.side)
    data = gather(args, encoder, device)
    print(f"{len(data.pixels)} rendered, {len(data.photo_pixels)} photos in {len(data.photo_ids)} samples", flush=True)
    aligner = Aligner(model, encoder.length, device, device == "cuda")
    begin = time.perf_counter()
    steps, log = learn(aligner, data, args)
    record = {
        "steps": steps,
        "samples": steps * args.batch,
        "seconds": round(time.perf_counter() - begin, 1),
        "held_out": {kind: round(answered(aligner, *one, args.batch), 4) for kind, one in data.held.items()},
        "held_out_n": args.held - args.held % args.batch,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0,
    }
    print(json.dumps(record, indent=1))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "aligned.json").write_text(json.dumps({**record, "loss": log}))
    weights = {f"model.vision_tower.{name}": tensor for name, tensor in aligner.vision.state_dict().items()}
    weights |= {
        f"model.multi_modal_projector.{name}": tensor for name, tensor in aligner.projector.state_dict().items()
    }
    halves = {name: tensor.detach().half().cpu().contiguous() for name, tensor in weights.items()}
    save_file(halves, args.out / "aligned.safetensors")
    whole, processor = build(args.llm, args.vision, image_size=args.side, aligned=False)
    whole.load_state_dict({name: tensor.float() for name, tensor in halves.items()}, strict=False)
    whole.save_pretrained(args.out / "model")
    processor.save_pretrained(args.out / "model")


def main() -> None:
    """Parse the command line and run one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("prepare")
    first.add_argument("data", type=Path)
    first.add_argument("out", type=Path)
    first.add_argument(
        "--packs",
        nargs="+",
        default=["grocery", "nlvr", "bccd", "puzzlevqa", "clipart", "charts", "documents", "words"],
    )
    second = steps.add_parser("train")
    for name in ("llm", "vision", "photos", "out"):
        second.add_argument(f"--{name}", type=Path, required=True)
    second.add_argument("--fonts", type=Path)
    second.add_argument("--init", type=Path, help="aligned weights to go on from")
    for name, value in (
        ("pictures", 160_000),
        ("held", 1024),
        ("batch", 256),
        ("steps", 5000),
        ("workers", 16),
        ("seed", 0),
    ):
        second.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("lr", 1e-3), ("photo-share", 0.2), ("seconds", 1e9)):
        second.add_argument(f"--{name}", type=float, default=value)
    for step in (first, second):
        step.add_argument("--side", type=int, default=SIDE, help="of the pictures, in pixels")
    args = parser.parse_args()
    if args.step == "prepare":
        prepare(args.data, args.packs, args.side, args.out)
    else:
        train(args)


if __name__ == "__main__":
    main()
