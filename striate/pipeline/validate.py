"""Validate a run before it starts: names, SPECs, data and model path, without loading a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from striate.config import RunConfig, is_builtin
from striate.data.pictures import PictureLimits, check_pictures
from striate.demo.places import FILES, check_pack
from striate.errors import ArtifactError, DataError, first_line
from striate.pipeline.ineffective_settings import ineffective_settings
from striate.pipeline.preflight import (
    check_loggers,
    check_number_format,
    check_parts,
    check_region,
    labels_of,
    num_layers_of,
    prompts_fit,
)
from striate.pipeline.run_inputs import check_model_path, locate_base
from striate.progress import Silent
from striate.pruning.removal import layers_to_remove
from striate.selectors.spec.grammar import parse_spec, resolve
from striate.selectors.spec.required_scores import check_specs
from striate.storage.read_files import user_path
from striate.tasks.benchmarks import BENCHMARKS
from striate.tasks.packs.findings import findings
from striate.tasks.packs.sources import check_pack_names, parse_source, read_source

if TYPE_CHECKING:
    from striate.data.samples import Sample
    from striate.data.sources.stored_pictures import Picture
    from striate.tasks.packs.items import Pack


def check_run(config: RunConfig) -> Iterator[str]:
    """Yield a line for each part of `config` that was found right.

    Raises:
        StriateError: the first part that is wrong.
    """
    check_specs(config, parse_spec(config.select.region))
    yield f"region    {config.select.region}"
    yield f"scorers   {_scorers(config)}"
    check_model_path(config.model.path, "model.path")
    yield f"model     {config.model.path}"
    if user_path(config.model.path).is_dir():
        check_parts(config, str(user_path(config.model.path)))
    for path in config.evaluate.others.values():
        check_model_path(path, "evaluate.others")
    _check_base(config)
    check_loggers(config)
    if config.machine.device == "cpu":
        from striate.models.io.devices import resolve_device

        check_number_format(config, resolve_device("cpu"))
    if config.train.method == "qlora":
        yield f"qlora     {_quantization(config.machine.device)}"
    if config.train.optimizer != "adamw":
        yield f"optimizer {_optimizer(config)}"
    limits = PictureLimits.of(config.machine)
    samples: list[Sample] = []
    healing = config.heal.text_data if config.heals else ()
    for name in dict.fromkeys((*config.data.train, *config.data.calibration, *healing)):
        read = samples if name in config.data.train else []
        yield f"data      {_data(name, config, limits, read)}"
    if config.data.validate:
        yield f"validate  {_held_out(config, limits)}"
    if user_path(config.model.path).is_dir() and not any(map(is_builtin, config.data.train)):
        yield f"lengths   {_lengths(config, limits, samples)}"
    if config.prune.remove:
        yield f"prune     {_removal(config)}"
    check_pack_names([_pack_name(name) for name in config.evaluate.packs])
    check_pack_names([_pack_name(name) for name in _until_names(config)])
    packs: list[Pack] = []
    until_packs: list[Pack] = []
    with ExitStack() as stack:
        for names, read_packs in ((config.evaluate.packs, packs), (_until_names(config), until_packs)):
            for name in names:
                yield f"pack      {_pack(name, config.evaluate.limit, read_packs, limits, stack)}"
            for line in prompts_fit(config, config.model.path, read_packs) if read_packs else ():
                yield f"prompts   {line}"
        for line in findings(samples, [*packs, *(pack for pack in until_packs if pack not in packs)]):
            yield f"note      {line}"
    if config.prune.until:
        yield f"until     {_until(config, packs, until_packs)}"
    if config.evaluate.gate:
        yield f"gate      {_gate(config, packs)}"
    for text in config.evaluate.suites:
        yield f"suite     {_suite(text)}"
    yield from ineffective_settings(config)


def _suite(text: str) -> str:
    from striate.harness.suites import parse_suite, require

    suite = parse_suite(text)
    return f"{text}: {suite.harness} {require(suite)}"


def _check_base(config: RunConfig) -> None:
    from striate.scorers import SCORERS
    from striate.scorers.base import check_base_named

    check_base_named([SCORERS.get(name) for name in config.analyze.scorers], locate_base(config, Silent()))


def _removal(config: RunConfig) -> str:
    """Return how many layers go; of a model on this disk, also of how many, and whether so many may."""
    remove, folder = config.prune.remove, user_path(config.model.path)
    spec, ranked = parse_spec(config.select.region), f"ranked by {config.prune.scorer}"
    ranked += "" if config.prune.compensate == "none" else f", compensated by {config.prune.compensate}"
    ranked += f", {config.prune.when} tuning"
    most = "at most " if config.prune.until else ""
    if not folder.is_dir():
        return f"{most}{remove}{' of the' if isinstance(remove, str) else ''} layers, {ranked}"
    num_layers = num_layers_of(str(folder))
    if not spec.needs_scores:
        check_region(config, resolve(spec, num_layers))
    return f"{most}{layers_to_remove(remove, num_layers)} of {num_layers} layers, {ranked}"


def _scorers(config: RunConfig) -> str:
    from striate.scorers import SCORERS

    return ", ".join(SCORERS.get(name).name for name in config.analyze.scorers)


def _quantization(device: str) -> str:
    from striate.models.io.devices import resolve_device
    from striate.models.io.quantized import check_quantization

    place = resolve_device(device)
    check_quantization(place)
    return f"bitsandbytes on {place}"


def _optimizer(config: RunConfig) -> str:
    from striate.models.io.devices import resolve_device
    from striate.training.optimizers import check_optimizer

    place = resolve_device(config.machine.device)
    check_optimizer(config.train, place)
    return f"{config.train.optimizer} on {place}"


def _data(name: str, config: RunConfig, limits: PictureLimits, read: list[Sample]) -> str:
    from striate.data.reading import read_samples
    from striate.data.sources.source_options import SourceOptions

    if is_builtin(name):
        check_pack(name, FILES)
        return name
    samples = read_samples(user_path(name), options=SourceOptions.of(config.data))
    read += samples
    owners = {image: sample.id for sample in reversed(samples) for image in sample.images}
    try:
        pictures = check_pictures(owners, limits)
    except DataError as error:
        if config.data.broken != "skip":
            raise
        pictures = f"{len(owners)} pictures, some broken: {error.given}"
    return f"{name}: {len(samples)} samples, {pictures}"


def _held_out(config: RunConfig, limits: PictureLimits) -> str:
    """Return what is held out of training, and measured; built-in data stays where it is."""
    from striate.data.held_out import check_metric, training_data

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
    return f"{section.validate}: {len(data.held_out)} samples are measured, {len(data.samples)} train"


def _lengths(config: RunConfig, limits: PictureLimits, training: list[Sample]) -> str:
    """Return that every sample that the run reads fits into `train.max_length`, or which are left out."""
    from striate.data.checks.length_check import oversized
    from striate.data.reading import drawn
    from striate.models.io.load import load_processor

    section, most = config.data, config.train.max_length
    samples = [*drawn(training, section.max_train_samples, config.seed), *_read_besides(config)]
    processor = load_processor(user_path(config.model.path))
    wrong = oversized(processor, samples, most, limits, skips=section.broken == "skip")
    if wrong and section.broken == "refuse":
        raise DataError(
            "\n".join(wrong.values()),
            f"pictures, question and the start of the answer within train.max_length {most}",
            "raise train.max_length, make pictures smaller, shorten or remove these samples, or use data.broken=skip",
        )
    left_out = f"; left out: {len(wrong)} ({', '.join(list(wrong)[:5])}{', ...' if len(wrong) > 5 else ''})"
    return f"{len(samples) - len(wrong)} samples fit into {most} tokens{left_out if wrong else ''}"


def _read_besides(config: RunConfig) -> list[Sample]:
    """Return the samples that a run reads besides its training data: held out, calibrating, and of healing's text."""
    from striate.data.held_out import training_data
    from striate.data.reading import read_many
    from striate.data.sources.source_options import SourceOptions
    from striate.healing.sample_mix import healing_samples

    data, heal, seed = config.data, config.heal, config.seed
    named = data.validate if data.validate and not data.validation_share else None
    text = heal.text_data if config.heals else ()
    if not (named or data.calibration or text) or any(map(is_builtin, (named or "", *data.calibration, *text))):
        return []
    trained = training_data(data, [user_path(name) for name in data.train], user_path(named) if named else None, seed)
    read = list(trained.held_out) if named else []
    options = SourceOptions.of(data)
    calibrating = [user_path(name) for name in data.calibration]
    for count in {config.analyze.samples, *([config.prune.samples] if config.prune.reads_samples else [])}:
        read += read_many(calibrating, count, seed, options) if calibrating else []
    if text:
        more = read_many([user_path(name) for name in text], options=options)
        read += healing_samples(trained.samples, heal, config.train.batch_size, seed, more)
    return list(dict.fromkeys(read))


def _pack_name(name: str) -> str:
    return name.partition(":")[2] if is_builtin(name) else parse_source(name).name


def _pack(name: str, limit: int | None, read: list[Pack], limits: PictureLimits, stack: ExitStack) -> str:
    """Return what a test pack or a benchmark holds, added to `read`.

    Pictures inside other files are unpacked to be decoded, to a folder that is gone with `stack`.
    """
    if is_builtin(name):
        check_pack(name)
        return name
    source = parse_source(name)
    inner = source.benchmark and BENCHMARKS.get(source.benchmark).unpack
    pack = read_source(source, limit, Path(stack.enter_context(_temporary_folder())) if inner else None)
    read.append(pack)
    owners: dict[Picture, str] = {image: item.id for item in reversed(pack.items) for image in item.images}
    tasks = len({item.task for item in pack.items})
    return f"{name}: {len(pack.items)} items of {tasks} tasks" + (
        f", {check_pictures(owners, limits)}" if owners else ""
    )


def _until_names(config: RunConfig) -> tuple[str, ...]:
    """Return the packs that are asked while layers go, besides the test packs."""
    return config.prune.until_packs if config.prune.until else ()


def _until(config: RunConfig, packs: list[Pack], until_packs: list[Pack]) -> str:
    """Return the conditions and the packs that are asked; what they name is looked up where every pack has been read.

    Built-in ones are not read.
    """
    from striate.pipeline.trials.until_gate import check_until, parse_until

    own, gate = config.prune.until_packs, config.prune.until or ""
    parse_until(gate)
    read, names = (until_packs, own) if own else (packs, config.evaluate.packs)
    if len(read) == len(names):
        check_until(gate, read)
    return f"{gate}, on {', '.join(own) if own else 'the test packs themselves'}"


def _temporary_folder() -> TemporaryDirectory[str]:
    """Return a context with a new folder for pictures.

    Raises:
        ArtifactError: there is no place for one.
    """
    try:
        return TemporaryDirectory(prefix="striate-check-")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"no folder for temporary files: {first_line(error)}", "one that you may write to", "set TMPDIR to one"
        ) from error


def _gate(config: RunConfig, packs: list[Pack]) -> str:
    """Return the gate; what it names is looked up where every pack has been read, which built-in ones are not."""
    from striate.pipeline.references import check_references
    from striate.tasks.scoring.gate import check_gate

    gate = config.evaluate.gate or ""
    check_references(config)
    if len(packs) == len(config.evaluate.packs):
        check_gate(gate, packs, labels_of(config), config.evaluate.baseline)
    return gate
