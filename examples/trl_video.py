"""Tune the visual region of a video LVLM with TRL's SFTTrainer: a clip is shown as frames, evenly spaced in time.

python examples/trl_video.py MODEL CLIPS OUT --region uniform:25% --frames 8

CLIPS is a JSON file, a list of {"clip": ..., "question": ..., "answer": ...}. A clip is a file that Pillow reads frame
by frame (GIF, WebP, APNG), or a folder of pictures in the order of their names; make such a folder of any video with
`ffmpeg -i clip.mp4 clip/%04d.jpg`. TRL's trainers take pictures and no videos, so frames are what goes in.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset, Image, List
from PIL import Image as Pictures
from PIL import ImageSequence
from trl import SFTConfig, SFTTrainer

import striate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("clips", type=Path)
parser.add_argument("out")
parser.add_argument("--region", default="uniform:25%")
parser.add_argument("--frames", type=int, default=8, help="of each clip")
parser.add_argument("--steps", type=int, default=-1, help="-1: one pass over the clips")
args = parser.parse_args()


def frames(clip: Path) -> list:
    """Return evenly spaced frames of a clip, the first of each equal part."""
    if clip.is_dir():
        every = [Pictures.open(file).convert("RGB") for file in sorted(clip.iterdir())]
    else:
        with Pictures.open(clip) as opened:
            every = [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
    count = min(args.frames, len(every))
    return [every[place * len(every) // count] for place in range(count)]


def row(clip: dict) -> dict:
    """Return a clip, its question and its answer as TRL reads them."""
    shown = frames(args.clips.parent / clip["clip"])
    asked = [*[{"type": "image"}] * len(shown), {"type": "text", "text": clip["question"]}]
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": clip["answer"]}]}],
        "images": shown,
    }


rows = [row(clip) for clip in json.loads(args.clips.read_text())]
dataset = Dataset.from_list(rows).cast_column("images", List(Image()))
loaded = striate.load_model(args.model)
region = striate.select(loaded.model, args.region)
trainer = SFTTrainer(
    loaded.model,
    SFTConfig(
        args.out,
        max_steps=args.steps,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        learning_rate=2e-4,
        max_length=None,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=dataset,
    processing_class=loaded.processor,
    peft_config=striate.lora_config(loaded.model, region, r=64, alpha=128),
)
trainer.train()
trainer.save_model(args.out)
print(f"layers {', '.join(map(str, region.layers))} of {region.num_layers} were tuned: {args.out}")
