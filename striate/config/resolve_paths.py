"""Make a config's paths absolute, so that it means the same from any folder."""

from typing import Any, TypeVar

from striate.config.inputs import is_builtin
from striate.config.run_config import RunConfig
from striate.config.section import Section, specs_of
from striate.storage.read_files import user_path

SectionT = TypeVar("SectionT", bound=Section)


def anchored(config: RunConfig) -> RunConfig:
    """Return `config` with its paths that exist made absolute, so that it means the same from any folder."""

    def fix(place: str) -> str:
        if is_builtin(place):
            return place
        try:
            return str(user_path(place).resolve(strict=True))
        except (OSError, RuntimeError, ValueError):
            return place

    def fix_named(place: str) -> str:
        name, colon, folder = place.partition(":")
        named = colon and not is_builtin(place) and not user_path(place).exists()
        return f"{name}:{fix(folder)}" if named else fix(place)

    def fix_specs(section: SectionT) -> SectionT:
        files = {name: spec for name, spec in specs_of(section).items() if spec.endswith(".json")}
        return section.model_copy(update={name: fix(spec) for name, spec in files.items()})

    def fix_suite(suite: str) -> str:
        tasks, at, folder = suite.partition("@")
        return f"{tasks}@{fix(folder)}" if at else suite

    def fix_all(places: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(fix(place) for place in places)

    data: dict[str, Any] = {
        "train": fix_all(config.data.train),
        "calibration": fix_all(config.data.calibration),
        "images": fix_all(config.data.images),
        "mix": {fix(place): times for place, times in config.data.mix.items()},
    }
    if config.data.validate and config.data.validation_share is None:
        data["validate"] = fix(config.data.validate)
    base = config.analyze.base
    return config.model_copy(
        update={
            "analyze": config.analyze.model_copy(update={"base": fix(base) if base else base}),
            "model": config.model.model_copy(update={"path": fix(config.model.path)}),
            "data": config.data.model_copy(update=data),
            "select": fix_specs(config.select),
            "train": fix_specs(config.train),
            "heal": fix_specs(config.heal).model_copy(update={"text_data": fix_all(config.heal.text_data)}),
            "prune": config.prune.model_copy(
                update={"until_packs": tuple(fix_named(place) for place in config.prune.until_packs)}
            ),
            "evaluate": config.evaluate.model_copy(
                update={
                    "packs": tuple(fix_named(place) for place in config.evaluate.packs),
                    "suites": tuple(fix_suite(suite) for suite in config.evaluate.suites),
                    "others": {name: fix(place) for name, place in config.evaluate.others.items()},
                }
            ),
        }
    )
