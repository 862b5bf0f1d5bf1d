"""Every model type of transformers is found, trained in part, made smaller and reloaded, or refused for a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from family_matrix import COLUMNS, RELEASE, Result, check
from family_page import row_of
from family_zoo import build_model, model_types

from striate.errors import ModelError
from striate.models.structure.anatomy import find_anatomy
from striate.models.structure.families import BROKEN

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
# One of each kind of anatomy; what other tests of this tier build as well is among the rest, marked `families`.
SUBSET = [
    "blip-2",
    "chameleon",
    "dots3_note",
    "florence2",
    "gemma4",
    "glm4v_moe",
    "idefics",
    "inkling2",
    "lfm2_vl",
    "llava",
    "mistral_large4",
    "mllama",
    "nemotron_h_omni",
    "qwen3_5",
    "qwen3_vl",
]
REFUSED = {
    "diffusion_gemma": "it writes blocks of text at once by diffusion",
    "inkling2": "it starts a block of layers whose sum later layers read",
    "inkling2_loop": "it starts a block of layers whose sum later layers read",
    "pp_formulanet": "can't be adapted with LoRA: transformers does not say where its embeddings are",
    "shieldgemma2": "transformers writes its weights under names that it can't read back",
}
NO_LVLM = {
    "evolla": "it reads proteins, not pictures",
    "mistral4": "is a text-only model: it has no vision encoder",
    "pi0": "it answers with movements of a robot, not with text",
}
BROKEN_HERE = {model_type: reason for (model_type, release), reason in BROKEN.items() if release == RELEASE}
# In transformers before 5.23 its uncached answers differ from its cached ones, whole or pruned.
UNCACHED_DIFFERS = {"paligemma"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _judge(model_type: str) -> Result:
    if model_type not in model_types():
        pytest.skip(f"transformers {transformers.__version__} has no model type {model_type!r}")
    try:
        result = check(model_type)
    except Exception as error:
        if _is_current():
            raise
        pytest.skip(f"its tiny config does not build in transformers {transformers.__version__}: {error}")
    if result.state == "not built":
        pytest.skip(result.reason)
    if result.state == "failed" and model_type in UNCACHED_DIFFERS and not _is_current():
        pytest.skip(result.reason)
    reason = {**REFUSED, **NO_LVLM, **BROKEN_HERE}.get(model_type)
    if reason:
        assert reason in result.reason, result
    else:
        assert result.state == "green", result
    return result


def _is_current() -> bool:
    return f"transformers {transformers.__version__}:" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("model_type", SUBSET)
def test_a_family_is_found_trained_made_smaller_and_reloaded(model_type: str) -> None:
    result = _judge(model_type)
    if _is_current():
        assert row_of(result) in PAGE.read_text(encoding="utf-8").splitlines(), (
            "run `python scripts/family_matrix.py --write`"
        )


@pytest.mark.families
@pytest.mark.parametrize("model_type", sorted(set(model_types()) - set(SUBSET)))
def test_every_other_family_too(model_type: str) -> None:
    _judge(model_type)


def test_the_page_shows_at_least_ninety_families_and_at_most_five_refusals() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    # Behind name, class and removed layers; what a family may lack comes last.
    cells = {name: [cell.strip() for cell in row.split("|")[4:]] for name, row in rows.items()}
    green = {name for name in rows if cells[name][: len(COLUMNS)] == ["✓"] * len(COLUMNS)}
    refused = {name for name, row in rows.items() if "| refused |" in row}
    broken = {name for name, row in rows.items() if "| broken |" in row}
    assert len(green) >= 90
    assert len(refused) <= 5
    assert green | refused | broken == set(rows)
    assert refused == set(REFUSED)
    assert broken == {name for name, release in BROKEN if f"transformers {release}." in page}
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"[{len(green)} model types](docs/families.md)" in readme


def test_a_model_type_of_no_table_is_treated_by_the_same_rules() -> None:
    model = build_model("qwen3_vl")
    expected = find_anatomy(model)
    model.config.model_type = "never_heard_of"
    found = find_anatomy(model)
    assert (found.layers_name, found.vision_names) == (expected.layers_name, expected.vision_names)
    assert set(found.projector_names) == set(expected.projector_names)


def test_a_projector_of_unknown_name_is_not_guessed() -> None:
    model = build_model("llava")
    model.config.model_type = "never_heard_of"
    model.model.bread = model.model._modules.pop("multi_modal_projector")
    with pytest.raises(ModelError, match=r"no projector found in Llava.*: it may be model\.bread"):
        find_anatomy(model)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(config: object) -> None:
        raise ImportError("TimmWrapperModel requires the timm library but it was not found in your environment.")

    monkeypatch.setattr("family_zoo.model_class", lambda model_type: missing)
    assert check("llava").state == "not built"
    assert check("llava").reason == "TimmWrapperModel requires the timm library"
