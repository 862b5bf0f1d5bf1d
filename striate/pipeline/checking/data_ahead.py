"""The data of a run: every sample read, every picture decoded, and how long the samples are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from striate.config import RunConfig, is_builtin
from striate.data.pictures import PictureLimits, check_pictures
from striate.demo.places import FILES, check_pack
from striate.errors import DataError
from striate.pipeline.checking.region_ahead import check_score_tasks
from striate.selectors.spec.grammar import Spec, parse_spec
from striate.storage.read_files import user_path

if TYPE_CHECKING:
    from striate.data.checks.length_check import Lengths
    from striate.data.held_out import TrainingData
    from striate.data.samples import Sample
    from striate.data.sources.stored_pictures import Picture

MOST_COUNTED = 5_000


def read_data(name: str, config: RunConfig, limits: PictureLimits, read: list[Sequence[Sample]]) -> str:
    """Return what a source of samples holds, which are put to `read`, after decoding every picture.

    Raises:
        DataError: a sample or a picture is wrong; where broken ones are skipped, a picture may be.
    """
    from striate.data.reading import columns_apply, read_samples
    from striate.data.sources.source_options import SourceOptions
    from striate.data.store.sample_columns import pictures_shown

    if is_builtin(name):
        check_pack(name, FILES)
        return name
    options = SourceOptions.of(config.data)
    samples = read_samples(user_path(name), options=options)
    read.append(samples)
    owners: dict[Picture, str] = {}
    for index, images in enumerate(pictures_shown(samples)):
        for image in images:
            if image not in owners:
                owners[image] = samples[index].id
    try:
        pictures = check_pictures(owners, limits)
    except DataError as error:
        if config.data.broken != "skip":
            raise
        pictures = f"{len(owners)} pictures, some broken: {error.given}"
    own = "" if columns_apply(user_path(name), options) else ", none with a column of data.columns"
    return f"{name}: {len(samples)} samples, {pictures}{own}"


def check_held_out(config: RunConfig, limits: PictureLimits) -> str:
    """Return what is held out of training, and measured; built-in data stays where it is.

    Raises:
        StriateError: what is held out can't be measured, or a picture is wrong.
    """
    from striate.data.held_out import check_metric, shows_trained, training_data

    section, share = config.data, config.data.validation_share
    names = [*section.train, *([] if share or section.validate is None else [section.validate])]
    if any(map(is_builtin, names)):
        for name in filter(is_builtin, names):
            check_pack(name, FILES)
        return f"{section.validate}{' of the training data' if share else ''}"
    place = None if share or section.validate is None else user_path(section.validate)
    data = training_data(section, [user_path(name) for name in section.train], place, config.seed)
    pictured = sum(bool(sample.images) for sample in data.held_out)
    check_metric(config.train.metric_for_best_model, pictured, len(data.held_out) - pictured)
    check_pictures({image: sample.id for sample in reversed(data.held_out) for image in sample.images}, limits)
    known = shows_trained(data)
    shared = f"; {known} of the measured show pictures that are trained on" if known else ""
    return f"{section.validate}: {len(data.held_out)} samples are measured, {len(data.samples)} train{shared}"


def mixed_sources(config: RunConfig) -> str:
    """Return how often an epoch shows each source, and the share of samples without pictures.

    Raises:
        DataError: there are no samples of a kind of which `data.mix` or `data.text` asks for some.
    """
    if any(map(is_builtin, config.data.train)):
        return "with built-in data, which is not read here"
    data = _training_data(config)
    told = [
        f"{PurePath(one.name).name} x {one.epochs:.3g} of {one.samples}"
        for one in (data.sources.seen([1] * len(data.samples)) if data.sources else ())
    ]
    text = sum(not sample.images for sample in data.samples)
    share = 100 * text / max(1, len(data.samples))
    return f"{', '.join(told)}: {len(data.samples)} samples an epoch, {share:.3g}% without pictures"


def _training_data(config: RunConfig) -> TrainingData:
    from striate.data.held_out import training_data

    section = config.data
    place = section.validate if section.validate and not section.validation_share else None
    held_out = user_path(place) if place and not is_builtin(place) else None
    return training_data(section, [user_path(name) for name in section.train], held_out, config.seed)


def check_lengths(config: RunConfig, limits: PictureLimits, training: Sequence[Sample]) -> tuple[Lengths, str]:
    """Return how long the training samples are, and that all that the run reads fit into `train.max_length`.

    Samples that do not are named, where they are left out. Of more than `MOST_COUNTED` so many are counted.

    Raises:
        DataError: one does not fit.
    """
    from striate.data.checks.length_check import lengths, oversized
    from striate.data.reading import drawn
    from striate.models.io.load import load_processor

    section, most = config.data, config.train.max_length
    folder, skips = user_path(config.model.path), section.broken == "skip"
    processor = load_processor(folder if folder.is_dir() else config.model.path, revision=config.model.revision)
    parted = bool(section.mix or section.text or section.validation_share)
    trained = _training_data(config).samples if parted else drawn(training, section.max_train_samples, config.seed)
    besides = _read_besides(config)
    found = lengths(processor, trained, most, limits, skips=skips, most_counted=MOST_COUNTED)
    wrong = [*found.wrong, *oversized(processor, besides, most, limits, skips=skips).items()]
    if wrong and not skips:
        raise DataError(
            "\n".join(why for _, why in wrong),
            f"pictures, question and the start of the answer within train.max_length {most}",
            "raise train.max_length, make pictures smaller, shorten or remove these samples, or use data.broken=skip",
        )
    left_out = (
        f"; left out: {len(wrong)} ({', '.join(name for name, _ in wrong[:5])}{', ...' if len(wrong) > 5 else ''})"
    )
    count = found.counted + len(besides) - len(wrong)
    some = f"of {found.samples} samples {found.counted} were counted, among them those of the most text and pictures: "
    told = some if found.counted < found.samples else ""
    return found, f"{told}{count} samples fit into {most} tokens{left_out if wrong else ''}"


def check_learning(config: RunConfig, spec: Spec, training: Sequence[Sample]) -> None:
    """Return if the training samples can train what the config says, and the calibration set can be scored.

    Raises:
        StriateError: they can't.
    """
    from striate.data.reading import read_many
    from striate.data.sources.source_options import SourceOptions
    from striate.scorers import SCORERS
    from striate.stages.analyze import check_calibration
    from striate.training.preflight_checks import check_samples

    check_samples(training, config.train)
    named = config.data.calibration or config.data.train
    if not any(map(is_builtin, named)):
        options = SourceOptions.of(config.data)
        samples = read_many([user_path(name) for name in named], config.analyze.samples, config.seed, options)
        check_calibration([SCORERS.get(name) for name in config.analyze.scorers], samples)
        tasks = {sample.task for sample in samples}
        check_score_tasks(spec, tasks)
        check_score_tasks(parse_spec(config.train.image_also), tasks, "train.image_also")


def _read_besides(config: RunConfig) -> list[Sample]:
    """Return the samples that a run reads besides its training data: held out, calibrating, and of healing's text."""
    from striate.data.held_out import training_data
    from striate.data.reading import read_many
    from striate.data.sources.source_options import SourceOptions
    from striate.healing.sample_mix import healing_samples

    data, heal, seed = config.data, config.heal, config.seed
    named = data.validate if data.validate and not data.validation_share else None
    text = heal.text_data if config.heals else ()
    if not (data.validate or data.calibration or text) or any(map(is_builtin, (named or "", *data.calibration, *text))):
        return []
    trained = training_data(data, [user_path(name) for name in data.train], user_path(named) if named else None, seed)
    read = list(trained.held_out)
    options = SourceOptions.of(data)
    calibrating = [user_path(name) for name in data.calibration]
    for count in {config.analyze.samples, *([config.prune.samples] if config.prune.reads_samples else [])}:
        read += read_many(calibrating, count, seed, options) if calibrating else []
    if text:
        more = read_many([user_path(name) for name in text], options=options)
        read += healing_samples(trained.samples, heal, config.train.batch_size, seed, more)
    return list(dict.fromkeys(read))
