"""What merging an adapter takes: memory beside the largest shard, and seconds, for LLaVA-1.5-7B's shapes.

python benchmarks/merge_memory.py FOLDER --layers 8 --shard 1GB --r 128

Weights are constant, and so is the adapter: what is measured depends on shapes alone. Linux only.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import peft
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from striate.models.convert.merge_checkpoint import write_weights
from striate.models.structure.meta_model import blueprint


def build(folder: Path, layers: int, shard: str, r: int) -> None:
    """Write base/ and adapter/: LoRA on every linear layer of the decoder, the projector whole."""
    vision, text = CLIPVisionConfig(num_hidden_layers=1), LlamaConfig(num_hidden_layers=layers)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=31_999)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config).bfloat16()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01) if tensor.is_floating_point() else tensor.zero_()
    model.save_pretrained(folder / "base", max_shard_size=shard)
    names = [name for name, _ in model.named_modules() if ".layers." in name and name.endswith("_proj")]
    targets = [name for name in names if "language_model" in name]
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=r, target_modules=targets, modules_to_save=["multi_modal_projector"])
    )
    wrapped.save_pretrained(folder / "adapter")


def resident(field: str) -> int:
    """Return the bytes that a field of this process's status tells."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def merge(folder: Path) -> None:
    """Merge adapter/ into base/ as out/, which is new."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    write_weights(blueprint(str(folder / "base")), folder / "base", folder / "adapter", "auto", folder / "out")


def main() -> None:
    """Build what is not there, merge, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--shard", default="1GB")
    parser.add_argument("--r", type=int, default=128)
    args = parser.parse_args()
    if not (args.folder / "adapter").is_dir():
        build(args.folder, args.layers, args.shard, args.r)
        print("built; run it again, in a process that has held no model")
        return
    # The high-water mark of what this process has held so far is forgotten.
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = resident("VmRSS"), time.perf_counter()
    merge(args.folder)
    taken, seconds = resident("VmHWM") - before, time.perf_counter() - begin
    shards = [file.stat().st_size for file in (args.folder / "base").glob("*.safetensors")]
    adapter = (args.folder / "adapter" / "adapter_model.safetensors").stat().st_size
    print(f"{len(shards)} shards, {sum(shards) / 1e9:.2f} GB, the largest {max(shards) / 1e6:.0f} MB")
    print(f"adapter {adapter / 1e6:.0f} MB")
    shutil.rmtree(args.folder / "out")
    print(f"memory {taken / 1e6:.0f} MB, {taken / max(shards):.2f} of the largest shard; {seconds:.1f} s")


if __name__ == "__main__":
    main()
