"""Prune: remove the least important decoder layers outside the region."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from striate.artifacts import Compensation, Cut, PruneRecord, Region, Scores, SelfTest
from striate.errors import ConfigError, ModelError, SpecError
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.image_token_count import image_tokens_counted
from striate.models.io.sane_model import check_finite
from striate.models.structure.anatomy import find_anatomy
from striate.models.surgery.remove_layers import check_removable, remove_layers
from striate.models.surgery.renumber import renumbered
from striate.pruning.position_order import ORDERS
from striate.pruning.tested_save import save_tested
from striate.storage.atomic import check_new_folder


@image_tokens_counted()
def prune(
    model: nn.Module,
    region: Region,
    remove: int,
    scores: Scores | None = None,
    scorer: str | None = None,
    *,
    cuts: Sequence[Cut] = (),
    compensate: Callable[[tuple[int, ...]], Compensation | None] | None = None,
    processor: Any = None,
    out: Path | None = None,
    test_inputs: Mapping[str, Tensor] | None = None,
) -> tuple[nn.Module, PruneRecord]:
    """Return `model` without its `remove` least important layers outside `region`, and the record of it.

    The model is changed in place and stays an ordinary one. Layers that the region's own selector gives up
    (`Region.removable`, of `interlace`) are removed before all others, and of equally important layers the deeper one.
    Paper: arXiv 2412.12785, removal of layers outside the visual region.

    Args:
        model: an LVLM without adapters (merge them first).
        region: the layers to keep in any case.
        remove: number of layers to remove; 0 leaves the model as it is.
        scores: importance of each layer, higher = keep; not needed where nothing is removed.
        scorer: which of `scores` ranks the layers, which may be left out where there is only one; or `top` or `spaced`.
        cuts: those of a greedy ranking (`striate.pruning`), which take the place of scores; `scorer` names it.
        compensate: called with the layers that go, before they do, to change weights of others so that they are missed
            less (`striate.pruning.compensation`); not where nothing is removed.
        processor: saved beside the model; needed with `out`.
        out: folder to save to. The saved model is then loaded again and compared with the one in memory.
        test_inputs: left-padded prompts for that comparison; by default one question about a made-up picture.

    Raises:
        ConfigError: more layers than lie outside the region, or fewer than none.
        SpecError: region or scores are of a model with another number of layers, or no scorer is named.
        ArtifactError: that scorer was not run, or `out` holds files already or can't be written.
        ModelError: weights that are not finite, a layer that can't be removed, or a saved model that does not match the
            one in memory.
    """
    started = time.perf_counter()
    num_layers = find_anatomy(model).num_layers
    check_finite(model)
    _check_layers(region, num_layers)
    check_removal(region, remove)
    _check_out(out, processor)
    name, removed = chosen_layers(region, remove, scores, scorer, cuts)
    before, bytes_before = _parameters(model), _bytes(model)
    compensation = None
    if compensate is not None and removed:
        check_removable(model, removed)
        compensation = compensate(removed)
    old_to_new = remove_layers(model, removed)
    record = PruneRecord(
        region=region,
        scorer=name,
        kept=tuple(old_to_new),
        removed=removed,
        old_to_new=old_to_new,
        parameters_before=before,
        parameters_after=_parameters(model),
        bytes_before=bytes_before,
        bytes_after=_bytes(model),
        cuts=tuple(cuts),
        compensation=compensation,
    )
    test = None if out is None else _save(model, processor, out, record, test_inputs)
    return model, record.model_copy(update={"self_test": test, "seconds": time.perf_counter() - started})


def chosen_layers(
    region: Region, remove: int, scores: Scores | None, scorer: str | None, cuts: Sequence[Cut] = ()
) -> tuple[str, tuple[int, ...]]:
    """Return what ranked the layers, and those that `prune` removes with these arguments, in rising order.

    Raises:
        SpecError: cuts that are not as many layers outside the region, or scores that are not of this model.
        ArtifactError: the scorer was not run.
    """
    return _by_cuts(region, remove, cuts, scorer) if cuts else _least_important(region, remove, scores, scorer)


def check_removal(region: Region, remove: int) -> None:
    """Check that `remove` layers lie outside `region`, and that one layer stays.

    Raises:
        ConfigError: more layers than that, or fewer than none.
    """
    most = min(len(region.outside), region.num_layers - 1)
    if not 0 <= remove <= most:
        outside = f"{len(region.outside)} of {region.num_layers} lie outside region {region.spec!r}"
        raise ConfigError(
            f"{remove} layers to remove, but {outside}",
            f"0 to {most} layers",
            "set prune.remove to such a number or choose another region",
        )


def _check_layers(region: Region, num_layers: int) -> None:
    """Raise where the region is of another model, before anything is changed."""
    if region.num_layers != num_layers:
        raise SpecError(
            f"region {region.spec!r} is of a model with {region.num_layers} layers, and this one has {num_layers}",
            "a region of the same model",
            "choose the region again with `striate select`",
        )


def _check_out(out: Path | None, processor: Any) -> None:
    if out is not None and processor is None:
        raise ModelError(
            "no processor was given, and a saved model does not load without one",
            "the processor of the model",
            "pass processor=...",
        )
    if out is not None:
        check_new_folder(out)


def _by_cuts(region: Region, remove: int, cuts: Sequence[Cut], scorer: str | None) -> tuple[str, tuple[int, ...]]:
    """Return what ranked the layers and those that go, in rising order: what the region gives up, then the cuts."""
    named = region.removable[: remove - len(cuts)]
    removed = sorted({*named, *(cut.layer for cut in cuts)})
    if len(removed) != remove or not set(removed) <= set(region.outside):
        raise SpecError(
            f"cuts of layers {', '.join(str(cut.layer) for cut in cuts)} were given, and {remove} layers are to go",
            "as many different layers outside the region as are removed",
            "rank the layers again for this region",
        )
    return (f"{region.selector}, then {scorer}" if named else str(scorer)), tuple(removed)


def _least_important(
    region: Region, remove: int, scores: Scores | None, scorer: str | None
) -> tuple[str, tuple[int, ...]]:
    """Return what ranked the layers and those that go, in rising order."""
    named = region.removable[:remove]
    if len(named) == remove:
        return (region.selector if remove else scorer or ""), tuple(sorted(named))
    others = [layer for layer in region.outside if layer not in named]
    if scorer is not None and scorer in ORDERS:
        placed = ORDERS[scorer](others, remove - len(named))
        return (f"{region.selector}, then {scorer}" if named else scorer), tuple(sorted((*named, *placed)))
    if scores is None:
        raise SpecError(
            "removing layers needs scores, and there are none",
            "scores.json of the same model",
            "run `striate analyze` first",
        )
    ran = [entry.scorer for entry in scores.scorers]
    if scorer is None and len(ran) != 1:
        raise SpecError(f"{len(ran)} scorers ran and none was named", ", ".join(ran), "name one with prune.scorer")
    entry = scores.of(scorer or ran[0])
    if {scores.num_layers, len(entry.values)} != {region.num_layers}:
        raise SpecError(
            f"the scores are of {len(entry.values)} layers, and the model has {region.num_layers}",
            "scores of the same model",
            "run `striate analyze` on this model",
        )
    ranked = sorted(others, key=lambda layer: (entry.values[layer], -layer))
    name = f"{region.selector}, then {entry.scorer}" if named else entry.scorer
    return name, tuple(sorted((*named, *ranked[: remove - len(named)])))


def _save(
    model: Any, processor: Any, out: Path, record: PruneRecord, test_inputs: Mapping[str, Tensor] | None
) -> SelfTest:
    """Save the model with its region and card, load it again and compare the two."""
    card = CardFacts(base=str(model.name_or_path), method="", region=record.region, prune=record)
    region = renumbered(record.region, record.old_to_new)
    return save_tested(model, processor, out, region=region, card=card, test_inputs=test_inputs)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
