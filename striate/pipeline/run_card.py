"""Write model cards of a run's checkpoints from the run's artifacts."""

from pathlib import Path

from striate.artifacts import EvalRecord, HealRecord, PruneRecord, Region, Retention, Scores, TrainRecord, read_if_there
from striate.config import BUILTIN, RunConfig
from striate.models.io.card.card_facts import CardFacts, Seen
from striate.models.io.card.model_card import write_card
from striate.pipeline.model_origins import FOLDERS
from striate.pipeline.settled_rates import settled
from striate.training.image_layers import by_number, needs_scores


def write_run_card(run: Path, label: str, config: RunConfig, base: str, figures: bool = False) -> None:
    """Write the card of a run's tuned, pruned or healed model, with its test scores where `figures` is true.

    Does nothing where the run has no such model. `figures` is for after its evaluation: before, scores in the folder
    may be those of an earlier model.

    Raises:
        ArtifactError: an artifact is damaged, or the checkpoint's folder can't be written.
    """
    folder = run / FOLDERS[label]
    if folder.is_dir():
        write_card(folder, card_facts(run, label, config, base, figures))


def card_facts(run: Path, label: str, config: RunConfig, base: str, figures: bool) -> CardFacts:
    """Return what the card of a run's model tells; for arguments and errors see `write_run_card`."""
    train = read_if_there(run / "train.json", TrainRecord)
    prune = read_if_there(run / "prune.json", PruneRecord) if label != "tuned" else None
    heal = read_if_there(run / "heal.json", HealRecord) if label == "pruned" and config.heals else None
    named = BUILTIN if config.model.path == BUILTIN else ""
    if config.prune.first:
        # The pruned model was not tuned yet, and the tuned one is counted in layers of the pruned one.
        train, base, named = (None, base, named) if label == "pruned" else (train, str(run / FOLDERS["pruned"]), "")
    region = read_if_there(run / "region.json", Region)
    retention = read_if_there(run / "eval" / "retention.json", Retention) if figures else None
    return CardFacts(
        base=base,
        method=config.train.method if train else "",
        region=train.trainable.region if train else prune.region if prune else None,
        trained=(train.trainable.trainable, train.trainable.total) if train else None,
        seen=_seen(train, config) if train else None,
        lr=train.lr if train else None,
        sources=train.sources if train else (),
        adapter=label == "tuned" and config.train.method != "full",
        prune=prune,
        heal=heal,
        evaluation=read_if_there(run / "eval" / f"{label}.json", EvalRecord) if figures else None,
        differences=retention.of(label) if retention else (),
        config=_by_number(run, settled(config, region), region) if region else config,
        named=named,
    )


def _by_number(run: Path, config: RunConfig, region: Region) -> RunConfig:
    """Return the config with the layers that scores chose to compute image tokens beside the region."""
    scores = read_if_there(run / "scores.json", Scores) if needs_scores(config.train) else None
    if scores is None:
        return config
    pruned = read_if_there(run / "prune.json", PruneRecord) if config.prune.first else None
    train = by_number(config.train, region, scores, pruned.old_to_new if pruned else None)
    return config.model_copy(update={"train": train})


def _seen(train: TrainRecord, config: RunConfig) -> Seen:
    return Seen.after(train.weights_step, train.samples, config.train.batch_size, len(train.skipped))
