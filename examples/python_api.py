"""Score the layers of an LVLM, choose its region, remove layers outside it: striate in Python, with types.

python examples/python_api.py MODEL PACK OUT --region uniform:25% --remove 4

OUT becomes an ordinary, smaller checkpoint with its processor.
"""

import argparse
from pathlib import Path

from transformers import PreTrainedModel

import striate
from striate.artifacts import Trainable
from striate.data.reading import read_samples
from striate.errors import StriateError


def smaller(model: PreTrainedModel, scores: striate.Scores, region: striate.Region, remove: int) -> PreTrainedModel:
    """Return `model` without the layers outside `region` that matter least."""
    return striate.prune(model, region, remove=remove, scores=scores, scorer="block-influence")


def main() -> None:
    """Read the arguments, and write the smaller model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--region", default="uniform:25%")
    parser.add_argument("--remove", type=int, default=4)
    args = parser.parse_args()

    loaded = striate.load_model(args.model)
    samples = read_samples(args.pack)[:64]
    scores = striate.analyze(loaded.model, loaded.processor, samples, scorers=["block-influence"])
    for layer, score in enumerate(scores.of("block-influence").values):
        print(f"layer {layer}: {score:.4f}")

    try:
        region = striate.select(loaded.model, args.region, scores)
    except StriateError as error:
        # It says what was given, what is allowed and what to do next.
        parser.error(str(error))
    trains: Trainable = striate.apply_region(loaded.model, region, method="full")
    print(f"layers {region.layers} of {region.num_layers}: {trains.trainable:,} of {trains.total:,} parameters")

    small = smaller(loaded.model, scores, region, args.remove)
    small.save_pretrained(args.out)
    loaded.processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
