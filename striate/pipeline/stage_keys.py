"""Stage keys: a stage's settings with the fingerprints of the model, data and artifacts that it reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from striate.artifacts import PruneRecord, Region, Scores, read_document
from striate.config import BESIDE, REGION, PruneSection, RunConfig, specs_of
from striate.data.named_pictures import named_pictures
from striate.data.sources.hub import is_hub
from striate.data.sources.source_files import source_files
from striate.harness.suites import Suite
from striate.pipeline.model_origins import origin_of
from striate.pipeline.run_inputs import RunInputs
from striate.pipeline.settled_rates import follows_from_region, settled
from striate.runs.folder import RunFolder
from striate.selectors.spec.grammar import Spec, parse_spec
from striate.storage.fingerprints import fingerprint, fingerprint_files, visible_files
from striate.tasks.packs.items import Pack
from striate.tasks.packs.sources import Source, read_of
from striate.training.image_layers import by_number, needs_scores


@dataclass
class StageKeys:
    """What every stage of one run follows from; a change in it makes the stage's artifacts stale.

    Of models, data and packs that are the files which a stage reads, and no others beside them. Asking for the key of
    a stage whose predecessor has not run, or ran on other inputs, raises ArtifactError.
    """

    run: RunFolder
    inputs: RunInputs
    read_packs: Callable[[], Sequence[Pack]]
    read_until: Callable[[], Sequence[Pack]] = list
    _known: dict[tuple[str, str], str] = field(default_factory=dict)
    _noted_places: dict[str, str] = field(default_factory=dict)

    @cached_property
    def region_spec(self) -> Spec:
        """The SPEC of the region, read once.

        Raises:
            SpecError: it can't be read.
        """
        return parse_spec(self.run.config.select.region)

    @property
    def choice_needs_scores(self) -> bool:
        """Whether the region, or the layers that compute image tokens beside it, follow from scores."""
        return self.region_spec.needs_scores or needs_scores(self.run.config.train)

    def settled(self) -> RunConfig:
        """Return the run's config with numbers for learning rates that follow from the region.

        Raises:
            ArtifactError: some do, and there is no region yet.
        """
        config = self.run.config
        if not follows_from_region(config):
            return config
        return settled(config, read_document(self.run.path / "region.json", Region))

    def tuning(self, whole: bool = False) -> RunConfig:
        """Return the settled config with layers that compute image tokens by number, where scores choose them.

        The numbers are those of the model that is tuned, or of the `whole` one.

        Raises:
            ArtifactError: scores, region, or the model that is tuned are not there, or out of date.
            SpecError: the layers that scores choose change nothing, or are all that are left.
        """
        config, folder = self.settled(), self.run.path
        if not needs_scores(config.train):
            return config
        self._scores()
        lost = config.prune.first and not whole
        removed = read_document(folder / "prune.json", PruneRecord).old_to_new if lost else None
        region, scores = read_document(folder / "region.json", Region), read_document(folder / "scores.json", Scores)
        return config.model_copy(update={"train": by_number(config.train, region, scores, removed)})

    def analyze(self) -> dict[str, Any]:
        """Return what the scores follow from."""
        config = self.run.config
        return {
            "model": self.model(),
            "data": self._data(self.inputs.calibrating),
            "section": config.analyze.model_dump(),
            "base": self._noted("base", self.inputs.base, self._of_model) if self.inputs.base else "",
            "max_length": config.train.max_length,
            "seed": config.seed,
        }

    def select(self) -> dict[str, Any]:
        """Return what the region follows from; scores only where the SPEC asks for them."""
        return {
            "model": self.model(),
            "spec": self.region_spec.text,
            "scores": self._scores() if self.region_spec.needs_scores else "",
            "file": _file(self.region_spec),
        }

    def train(self) -> dict[str, Any]:
        """Return what the tuned model follows from."""
        config = self.run.config
        return {
            "model": self.model(origin_of(config, "tuned")),
            "data": self._data(self.inputs.train),
            **self._held_out(),
            **self._mix(),
            "limit": config.data.max_train_samples,
            "region": self._region(),
            "section": self.tuning().train.noted(),
            **{name: file for name, spec in specs_of(config.train).items() if (file := _file(parse_spec(spec)))},
            "seed": config.seed,
        }

    def prune(self, section: PruneSection | None = None) -> dict[str, Any]:
        """Return what the pruned model follows from, with `section` in place of the run's own."""
        config, section = self.run.config, section or self.run.config.prune
        greedy = bool(section.remove) and section.greedy
        # What has no effect is left out, and so is a setting that earlier runs did not have.
        unread = {"samples"} if not section.reads_samples else set()
        unread |= {"text_weight"} if not greedy else set()
        unread |= {"compensate"} if section.compensate == "none" or not section.remove else set()
        unread |= set() if section.first else {"when"}
        unread |= {"until_packs", *(() if section.until else ("until",))}
        follows: dict[str, Any] = {
            "checkpoint": self.model(origin_of(config, "pruned")),
            "region": self._region(),
            "scores": self._scores() if section.needs_scores else "",
            "section": section.model_dump(exclude=unread),
        }
        if section.reads_samples:
            follows["data"] = self._data(self.inputs.calibrating)
            follows |= {"max_length": config.train.max_length, "seed": config.seed}
        if section.until:
            # By which the number of layers is chosen.
            follows["asked"] = self.asked(until=True)
            follows["healing"] = self.healing() if config.heals else {}
        return follows

    def teacher(self) -> dict[str, Any]:
        """Return what the tuned model's answers on the samples that heal follow from."""
        config = self.run.config
        section = config.heal
        return {
            "checkpoint": self.model("tuned"),
            "data": self._data(self.inputs.train),
            "text": self._data(self.inputs.heal_text),
            **self._held_out(),
            **self._mix(),
            "limit": config.data.max_train_samples,
            "drawn": section.model_dump(include={"steps", "share", "text"}),
            "kept": [section.top_k if section.kl else 0, section.hidden > 0],
            "batch_size": config.train.batch_size,
            "max_length": config.train.max_length,
            "seed": config.seed,
        }

    def heal(self) -> dict[str, Any]:
        """Return what the healed model follows from."""
        return {"model": self.model("unhealed"), **self.healing()}

    def healing(self) -> dict[str, Any]:
        """Return what healing follows from, whatever layers are gone."""
        section, train = self.settled().heal, self.settled().train
        settings = section.training(train).noted()
        return {
            "teacher": self.teacher(),
            "section": section.model_dump(exclude={"text_data", "method", "lr"}),
            "train": {name: value for name, value in settings.items() if name != "save_steps"},
            "file": "" if section.region in (REGION, BESIDE) else _file(parse_spec(section.region)),
        }

    def ranking(self, section: PruneSection) -> dict[str, Any]:
        """Return what the order in which layers go follows from, however many do."""
        follows = self.prune(section.model_copy(update={"until": None}))
        kept = {"scorer", "samples", "text_weight"}
        return {**follows, "section": {name: value for name, value in follows["section"].items() if name in kept}}

    def compensation(self, section: PruneSection) -> dict[str, Any]:
        """Return what compensation follows from, beside the model and the layers that go; nothing without one."""
        if section.compensate == "none":
            return {}
        follows = self.prune(section.model_copy(update={"until": None}))
        read = {name: follows[name] for name in ("data", "max_length", "seed")}
        return {**read, "section": section.model_dump(include={"compensate", "samples"})}

    def evaluate(self, label: str) -> dict[str, Any]:
        """Return what the answers of the model called `label` follow from."""
        return {"model": self.model(label), **self.asked()}

    def floor(self, label: str) -> dict[str, Any]:
        """Return what the answers of the model called `label` without pictures follow from."""
        return {**self.evaluate(label), "pictures": "grey"}

    def asked(self, until: bool = False) -> dict[str, Any]:
        """Return what answers follow from besides the model: those of the test, or by which `prune.until` chooses."""
        config = self.run.config
        return {
            "packs": self._until_packs() if until and self.inputs.until_packs else self._packs(),
            "section": config.evaluate.model_dump(include={"packs", "limit", "max_new_tokens", "bootstrap"}),
            "seed": config.seed,
        }

    def suite(self, label: str, suite: Suite) -> dict[str, Any]:
        """Return what a harness's figures of the model called `label` follow from."""
        return {
            "model": self.model(label),
            "suite": [suite.harness, *suite.tasks],
            "folder": self._of_folder(suite.folder) if suite.folder else "",
            "limit": self.run.config.evaluate.limit,
        }

    def model(self, label: str = "start") -> str:
        """Return the fingerprint of the model called `label`."""
        if label == "tuned":
            return self._output("train", "checkpoint", self.train)
        heals = self.run.config.heals
        if label == "unhealed" or (label == "pruned" and not heals):
            return self._output("prune", label, self.prune)
        if label == "pruned":
            return self._output("heal", label, self.heal)
        if label in self.run.config.evaluate.others:
            return self._noted(f"model:{label}", self.run.config.evaluate.others[label], self._of_model)
        return self._noted("model", self.inputs.model, self._of_model)

    def _held_out(self) -> dict[str, Any]:
        """Return what samples are held out by, if any are."""
        place = self.inputs.validate
        validate = self._data([place]) if place else self.run.config.data.validate
        return {"validate": validate} if validate else {}

    def _mix(self) -> dict[str, Any]:
        """Return how often an epoch shows each source, in their order, and text; nothing where all are shown once."""
        data = self.run.config.data
        mix = {"mix": [data.mix.get(place, 1) for place in data.train]} if data.mix else {}
        return mix | ({"text_share": data.text} if data.text else {})

    def _scores(self) -> str:
        return self._output("analyze", "scores.json", self.analyze)

    def _region(self) -> str:
        return self._output("select", "region.json", self.select)

    def _data(self, paths: Sequence[Path]) -> list[Any]:
        """Return what samples follow from: the files, and how they are read where that is not the default."""
        found: list[Any] = [self._noted(f"data:{path.name}", str(path), self._of_data) for path in paths]
        return [*found, *([noted] if (noted := self.inputs.options.noted()) and paths else [])]

    def _packs(self) -> list[str]:
        return [self._of_source(source, partial(self._of_pack, n)) for n, source in enumerate(self.inputs.packs)]

    def _until_packs(self) -> list[str]:
        return [self._of_source(source, partial(self._of_until, n)) for n, source in enumerate(self.inputs.until_packs)]

    def _of_source(self, source: Source, read: Callable[[Source, Path], str]) -> str:
        return self._noted(f"pack:{source.folder.name}", str(source.folder), partial(read, source))

    def _output(self, stage: str, name: str, inputs: Callable[[], Mapping[str, Any]]) -> str:
        return self.run.output(stage, name, inputs())

    def _of_model(self, path: Path) -> str:
        """Return the fingerprint of a model's folder; of an adapter, with that of its base."""
        if not (path / "adapter_config.json").is_file():
            return fingerprint(path)
        from striate.models.io.adapter_folder import base_of

        base = Path(base_of(path))
        return f"{fingerprint(path)}+{self._of_model(base) if base.is_dir() else base}"

    def _of_data(self, path: Path) -> str:
        source = source_files(path)
        return fingerprint_files(source.folder, [*source.files, *named_pictures(path, self.inputs.options)])

    def _of_pack(self, number: int, source: Source, folder: Path) -> str:
        return fingerprint_files(folder, read_of(source, self.read_packs()[number]))

    def _of_until(self, number: int, source: Source, folder: Path) -> str:
        return fingerprint_files(folder, read_of(source, self.read_until()[number]))

    def _of_folder(self, folder: Path) -> str:
        return fingerprint_files(folder, visible_files(folder))

    def _noted(self, name: str, place: str, read: Callable[[Path], str]) -> str:
        """Return the fingerprint of a model or data set, computed once and noted; a hub id stands for itself."""
        kind = name.partition(":")[0]
        if (kind, place) not in self._known:
            path = Path(place)
            revision = self.run.config.model.revision or "main"
            self._known[kind, place] = read(path) if path.exists() or is_hub(path) else f"{place}@{revision}"
            # Data sets in folders of one name are told apart by their whole paths.
            label = f"{name} ({place})" if self._noted_places.get(name, place) != place else name
            self._noted_places[label] = place
            self._note(label, self._known[kind, place])
        return self._known[kind, place]

    def _note(self, label: str, value: str) -> None:
        self.run.note_fingerprint(label, value)


def _file(spec: Spec) -> str:
    """Return the fingerprint of the file that a SPEC names; empty if it names none."""
    return fingerprint(spec.path) if spec.path and spec.path.is_file() else ""
