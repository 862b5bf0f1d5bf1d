"""What trained: parameters by component and by layer, and how the training went."""

from striate.artifacts import ComponentCount, SourceSeen, TrainRecord, ValidationRecord
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.tables import Cell, facts, figures, share_bar, table
from striate.wording import amount, count, duration, gibibytes, percent, plain_number

HEADS = ["", "parameters", "trainable", "share", ""]

_METHODS = {"lora": "LoRA", "qlora": "QLoRA", "full": "full weights"}


def draw_trained(record: TrainRecord) -> Html:
    """Return the block on what trained: a table of components, a folded table of layers, and the proof."""
    trainable = record.trainable
    whole = ComponentCount(component="whole model", total=trainable.total, trainable=trainable.trainable, tensors=0)
    rows = [_cells(row) for row in (*trainable.components, whole)]
    kinds = ["" for _ in trainable.components] + ["overall"]
    layers = tag(
        "details",
        tag("summary", f"Every decoder layer ({len(trainable.layers)})"),
        table(["layer", *HEADS[1:]], [_cells(row) for row in trainable.layers]),
    )
    proof = tag("p", tag("b", "Proof before step 1. "), record.proof, class_="proof")
    return tag("div", table(["component", *HEADS[1:]], rows, kinds), proof, layers if trainable.layers else None)


def draw_course(record: TrainRecord) -> Html:
    """Return the figures of the training run."""
    return facts(
        [
            ("method", _METHODS.get(record.trainable.method, record.trainable.method)),
            *([("learning rate", f"{record.lr:g}")] if record.lr else []),
            ("samples", count(record.samples)),
            *((shown_place(one.name), _seen(one)) for one in (record.sources if len(record.sources) > 1 else ())),
            *([("skipped as broken", count(len(record.skipped)))] if record.skipped else []),
            ("steps", f"{count(record.steps)} ({_amount_of_epochs(record.epochs)})"),
            ("loss, first to last", f"{plain_number(record.first_loss)} → {plain_number(record.last_loss)}"),
            *(_held_out(record.validation) if record.validation else []),
            *_image_tokens(record),
            ("time", duration(record.seconds)),
            ("peak memory", gibibytes(record.peak_memory_gib)),
        ]
    )


def _image_tokens(record: TrainRecord) -> list[tuple[str, str]]:
    """Return the figures of image tokens that skip layers, where they do."""
    shown = []
    if (check := record.image_check) is not None:
        losses = f"{plain_number(check.whole)} → {plain_number(check.ruled)}"
        shown.append(("start model's loss as image tokens skip layers", f"{losses} (n = {count(check.samples)})"))
    if record.whole_steps is not None:
        shown.append(("steps with image tokens in all layers", count(record.whole_steps)))
    return shown


def _held_out(record: ValidationRecord) -> list[tuple[str, str]]:
    """Return the figures of held-out samples."""
    samples = count(record.visual_samples + record.text_samples)
    losses = f"{plain_number(record.first['loss'])} → {plain_number(record.last['loss'])}"
    rates = [one.get("exact_match") for one in (record.first, record.last)]
    # Runs of earlier versions measured losses alone.
    matches = " → ".join(percent(rate) for rate in rates if rate is not None)
    kept = f"step {count(record.kept_step)}, best at step {count(record.best_step)}"
    return [
        ("held-out loss", f"{losses} (n = {samples})"),
        *([("held-out answers right", matches)] if matches else []),
        ("weights of", kept + (", stopped early" if record.stopped_early else "")),
    ]


def shown_place(name: str) -> str:
    """Return the name of a place of training data, without the folders that it lies in."""
    return name if name.startswith("hf:") else name.rstrip("/").rpartition("/")[2]


def _seen(source: SourceSeen) -> str:
    return f"{count(source.seen)} of {count(source.samples)} ({_amount_of_epochs(source.epochs)})"


def _amount_of_epochs(epochs: float) -> str:
    return amount(int(epochs), "epoch") if epochs == int(epochs) else f"{epochs:.3g} epochs"


def _cells(row: ComponentCount) -> list[Cell]:
    share = row.trainable / row.total if row.total else 0.0
    return [
        Cell(row.component, head=True),
        *figures(count(row.total), count(row.trainable), percent(share) if row.trainable else "frozen"),
        Cell(share_bar(share), wide_only=True),
    ]
