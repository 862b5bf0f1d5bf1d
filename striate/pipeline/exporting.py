"""Writes a run's or a folder's model in the form that another program serves, and says by which commands."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.errors import ConfigError, ModelError
from striate.pipeline.merging import facts_of, merge_model
from striate.pipeline.run_models import ModelPlace, model_of, revision_of
from striate.progress import Progress
from striate.storage.atomic import check_new_folder, check_room

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

TARGETS = ("gguf", "vllm", "int8", "int4", "fp8")
QUANTIZED = TARGETS[2:]
_BY_VLLM = "export it as gguf or int8, or serve it with transformers"
_EXPERTS = "the {} stacks of experts keep their format, beside linear layers in fewer bits"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        model: which model.
        what: what was written, in one line.
        files: bytes of the largest files by name.
        notes: what differs from the model as striate asks it, one line each.
        commands: what serves it, one line each.
    """

    model: ModelPlace
    what: str
    files: dict[str, int]
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ExportOptions:
    """How a model is written: number format of GGUF, without the vision part or not, and the model's revision."""

    kind: str = "f16"
    text_only: bool = False
    revision: str | None = None


def export_model(
    source: str | Path,
    out: Path,
    to: str,
    *,
    label: str | None = None,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Return what was written to the new folder `out`, whole or not at all.

    Args:
        source: a run folder, a model's folder or a hub id.
        out: a new or empty folder.
        to: `gguf` (llama.cpp, Ollama), `vllm`, or `int8`, `int4`, `fp8` (compressed-tensors).
        label: which of a run's models; None for the last one that it made.
        options: of GGUF.
        progress: told where the built-in LVLM must be built first.

    Raises:
        ConfigError: an unknown form.
        StriateError: the model can't be read, merged, or served in this form; `out` can't be written.
    """
    options = options or ExportOptions()
    if to not in TARGETS:
        raise ConfigError(f"unknown form {to!r}", ", ".join(TARGETS), "for example --to gguf")
    check_new_folder(out)
    place, options = _fetched(model_of(source, label, progress), options)
    if to == "gguf":
        return _gguf(place, out, options)
    if to == "vllm":
        return _vllm(place, source if place.run else place.path, out, options)
    return _compressed(place, out, to, options)


def _fetched(place: ModelPlace, options: ExportOptions) -> tuple[ModelPlace, ExportOptions]:
    """Return `place` as the folder of an adapter where its hub id is one's, at its revision; any other as it is."""
    from striate.models.io.adapter_folder import base_of, is_adapter
    from striate.models.io.load import source_of

    if Path(place.path).is_dir():
        return place, options
    folder = Path(source_of(place.path, revision_of(place, options.revision)))
    if not is_adapter(folder):
        return place, options
    return replace(place, path=str(folder), base=base_of(folder), revision=None), replace(options, revision=None)


def _load(place: ModelPlace, revision: str | None) -> Loaded:
    """Return the model in the format that its folder has; with an adapter merged in, which takes float32."""
    from striate.models.io.load import load_model, read_config

    revision = revision_of(place, revision)
    stored = "float32" if place.adapter else str(read_config(place.path, revision).dtype).removeprefix("torch.")
    dtype = stored if stored in ("float16", "bfloat16") else "float32"
    return load_model(place.path, device="cpu", dtype=dtype, revision=revision, merge=True)


def _gguf(place: ModelPlace, out: Path, options: ExportOptions) -> Exported:
    from striate.data.chat_template.template_limits import bounded_time, check_template
    from striate.models.convert.gguf.gguf_folder import chat_of, export_gguf
    from striate.models.convert.gguf.picture_template import template_of

    loaded = _load(place, options.revision)
    model, processor = loaded.model, loaded.processor
    if template := template_of(processor):
        check_template(template)
    with bounded_time():
        chat = chat_of(model, processor, text_only=options.text_only)
    done = export_gguf(model, processor, out, kind=options.kind, text_only=options.text_only, chat=chat)
    language = shlex.quote(str(done.language))
    vision = f" --mmproj {shlex.quote(str(done.vision))}" if done.vision else ""
    picture = " --image PICTURE.jpg" if done.vision else ""
    cli = "llama-mtmd-cli" if done.vision else "llama-cli"
    commands = [
        f"llama-server -m {language}{vision}",
        f'{cli} -m {language}{vision}{picture} --temp 0 -p "QUESTION"',
        f"ollama create {_name(out)} -f {shlex.quote(str(out / 'Modelfile'))}",
    ]
    what = f"language model in {options.kind}" + (", vision part in f16" if done.vision else " alone: no pictures")
    return Exported(place, what, done.sizes, done.notes, commands)


def _vllm(place: ModelPlace, source: str | Path, out: Path, options: ExportOptions) -> Exported:
    from striate.models.convert.vllm_adapter import problems_of, write_adapter
    from striate.models.convert.vllm_rules import model_problem, rank_option
    from striate.models.io.adapter_folder import adapter_config, base_revision_of
    from striate.models.io.load import read_config
    from striate.models.visual_token_skipping.rule import VISUAL_COMPUTE_FILE

    revision = revision_of(place, options.revision)
    whole = place.base or place.path
    whole = str(Path(whole).resolve()) if Path(whole).is_dir() else whole
    pinned = base_revision_of(Path(place.path)) if place.adapter else revision
    if problem := model_problem(read_config(whole, pinned)):
        raise ModelError(problem, "a family that docs/serving.md lists for vLLM", _BY_VLLM)
    if (Path(place.path) / VISUAL_COMPUTE_FILE).is_file():
        raise ModelError(
            "this model skips image tokens in some layers, which vLLM can't",
            "a model that computes all tokens in every layer",
            "train it without train.image_tokens: region",
        )
    notes: list[str] = []
    if place.adapter:
        folder = Path(place.path)
        problems = problems_of(folder)
        if not problems:
            write_adapter(folder, out)
            at = f" --revision {shlex.quote(pinned)}" if pinned and not Path(whole).is_dir() else ""
            rank = rank_option(int(adapter_config(folder)["r"]))
            command = (
                f"vllm serve {shlex.quote(str(whole))}{at} --enable-lora --max-lora-rank {rank}"
                f" --lora-modules {_name(out)}={shlex.quote(str(out))}"
            )
            return Exported(place, "an adapter that vLLM puts on its base model", _sizes(out), [], [command])
        notes = [f"merged into its base model, as vLLM would not take the adapter: {why}" for why in problems]
    check_room(
        sum(_sizes(Path(whole)).values()) + (sum(_sizes(Path(place.path)).values()) if place.adapter else 0), out
    )
    merge_model(source, out, label=place.label if place.run else None, revision=options.revision)
    return Exported(place, "a whole checkpoint", _sizes(out), notes, [_serve(out)])


def _compressed(place: ModelPlace, out: Path, to: str, options: ExportOptions) -> Exported:
    from striate.demo.vision_config import EfficientNetLiteConfig
    from striate.models.convert.beside_weights import write_beside, write_card_beside
    from striate.models.convert.compressed_checkpoint import SCHEMES, write_compressed
    from striate.models.convert.vllm_rules import model_problem

    folder, base = _folders(place, options.revision)
    loaded = _load(place, options.revision)
    model: Any = loaded.model
    if str(model.dtype) == "torch.float32":
        model = model.bfloat16()
    config, facts = model.config, facts_of(place, folder)
    if facts is not None and place.adapter:
        facts = replace(facts, adapter=False, merged=str(model.dtype).removeprefix("torch."))

    def beside(target: Path) -> None:
        write_beside(folder, base, target)
        write_card_beside(folder, target, facts, out.name)

    done = write_compressed(model, loaded.processor, out, to, beside)
    group = f", groups of {done.group}" if done.group else ""
    what = (
        f"{SCHEMES[to].title}{group}: {done.matrices} matrices of decoder layers;"
        f" weights {done.bytes_before / 1e6:.1f} -> {done.bytes_after / 1e6:.1f} MB"
    )
    commands = [f"AutoModelForImageTextToText.from_pretrained({str(out)!r})  # pip install compressed-tensors"]
    problem = model_problem(config) or (_EXPERTS.format(done.experts) if done.experts else "")
    notes = [f"not for vLLM: {problem}"] if problem else []
    if getattr(getattr(config, "vision_config", None), "model_type", None) == EfficientNetLiteConfig.model_type:
        notes.append("its encoder is striate's own: call striate.demo.register.register_with_transformers() first")
    return Exported(place, what, _sizes(out), notes, commands + ([] if problem else [_serve(out)]))


def _folders(place: ModelPlace, revision: str | None) -> tuple[Path, Path]:
    """Return the folders of a model, and of the one under it where it is an adapter; those of the hub are fetched."""
    from striate.models.convert.legacy.legacy_sources import folder_of
    from striate.models.io.adapter_folder import base_of, base_revision_of, is_adapter

    folder = folder_of(place.path, "model", revision_of(place, revision))
    if not is_adapter(folder):
        return folder, folder
    return folder, folder_of(base_of(folder), "base model", base_revision_of(folder))


def _serve(out: Path) -> str:
    return f"vllm serve {shlex.quote(str(out))} --served-model-name {_name(out)}"


def _sizes(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(out.glob("*.safetensors"))}


def _name(out: Path) -> str:
    """Return a name for a served model: that of its folder, in letters that all servers take."""
    return re.sub(r"[^a-z0-9._-]+", "-", out.absolute().name.lower()).strip("-.") or "model"
