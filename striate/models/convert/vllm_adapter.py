"""A PEFT adapter that vLLM serves beside its base model: what keeps one from it, and a folder with what it reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from striate.errors import ModelError
from striate.models.convert.vllm_rules import adapter_problems
from striate.models.io.adapter_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_config,
    base_of,
    base_revision_of,
)
from striate.models.io.weights.safetensors_shards import check_finite_file
from striate.models.structure.anatomy import find_anatomy, layer_of, plain_name
from striate.models.structure.meta_model import blueprint
from striate.storage.atomic import new_folder, write_text


def problems_of(adapter: Path) -> list[str]:
    """Return why vLLM would refuse the adapter in this folder, or misread it; empty where it takes it.

    Raises:
        ModelError: the adapter or its base model can't be read.
    """
    anatomy = find_anatomy(blueprint(base_of(adapter), base_revision_of(adapter)).model)
    outside = [name for name in _names(adapter) if layer_of(anatomy, plain_name(name)) is None]
    return adapter_problems(adapter_config(adapter), outside)


def write_adapter(adapter: Path, out: Path) -> None:
    """Write the adapter to the folder `out`, whole or not at all, with the whole path of its base model.

    Raises:
        ArtifactError: `out` can't be written.
        ModelError: weights that are no numbers.
    """
    check_finite_file(adapter / ADAPTER_WEIGHTS)
    base = base_of(adapter)
    # A name that is looked for from the working folder is none to whoever serves it from elsewhere.
    base = str(Path(base).resolve()) if Path(base).is_dir() else base
    config = adapter_config(adapter) | {"base_model_name_or_path": base}
    with new_folder(out) as folder:
        write_text(folder / ADAPTER_CONFIG, json.dumps(config, indent=2) + "\n")
        shutil.copyfile(adapter / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)


def _names(adapter: Path) -> list[str]:
    file = adapter / ADAPTER_WEIGHTS
    try:
        with safe_open(file, "pt") as stored:
            return list(stored.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} can't be read: {error}", "the weights that PEFT writes", "save it again") from error
