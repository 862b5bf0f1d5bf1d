"""The paths of a config, made to mean the same from any folder."""

from __future__ import annotations

from pathlib import Path

from striate.config.inputs import is_builtin
from striate.config.run_config import RunConfig


def anchored(config: RunConfig) -> RunConfig:
    """Return `config` with its paths that exist made absolute, so that it means the same from any folder."""

    def fix(place: str) -> str:
        if is_builtin(place):
            return place
        try:
            return str(Path(place).expanduser().resolve(strict=True))
        except (OSError, RuntimeError, ValueError):
            return place

    def fix_named(place: str) -> str:
        name, colon, folder = place.partition(":")
        named = colon and not is_builtin(place) and not Path(place).expanduser().exists()
        return f"{name}:{fix(folder)}" if named else fix(place)

    def fix_spec(spec: str) -> str:
        return fix(spec) if spec.endswith(".json") else spec

    def fix_suite(suite: str) -> str:
        tasks, at, folder = suite.partition("@")
        return f"{tasks}@{fix(folder)}" if at else suite

    def fix_all(places: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(fix(place) for place in places)

    data = {"train": fix_all(config.data.train), "calibration": fix_all(config.data.calibration)}
    base = config.analyze.base
    return config.model_copy(
        update={
            "analyze": config.analyze.model_copy(update={"base": fix(base) if base else base}),
            "model": config.model.model_copy(update={"path": fix(config.model.path)}),
            "data": config.data.model_copy(update=data),
            "select": config.select.model_copy(update={"region": fix_spec(config.select.region)}),
            "train": config.train.model_copy(update={"image_also": fix_spec(config.train.image_also)}),
            "evaluate": config.evaluate.model_copy(
                update={
                    "packs": tuple(fix_named(place) for place in config.evaluate.packs),
                    "suites": tuple(fix_suite(suite) for suite in config.evaluate.suites),
                    "others": {name: fix(place) for name, place in config.evaluate.others.items()},
                }
            ),
        }
    )
