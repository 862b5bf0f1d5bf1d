"""Parses region SPECs, such as `uniform:25%`, and resolves them to layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from striate.artifacts import Region, Scores, read_document
from striate.errors import ArtifactError, SpecError, StriateError, did_you_mean
from striate.selectors import SELECTORS
from striate.selectors.spec.params import SpecParams
from striate.selectors.spec.score_params import ScoredParams, ScoreName

ReadRegion = Callable[[Path], Region]


@dataclass(frozen=True)
class Spec:
    """A parsed SPEC: a strategy with its params, or else the path of a region file."""

    text: str
    selector: str
    params: SpecParams | None = None
    path: Path | None = None

    @property
    def needs_scores(self) -> bool:
        """Whether its layers follow from scores."""
        return self.params is not None and self.params.needs_scores

    @property
    def score_names(self) -> tuple[ScoreName, ...]:
        """The scores that it names."""
        return self.params.names if isinstance(self.params, ScoredParams) else ()


def _read_region(path: Path) -> Region:
    return read_document(path, Region)


def parse_spec(spec: str) -> Spec:
    """Return `spec`, parsed and checked as far as possible without a model.

    The grammar, with examples, is in docs/regions.md.

    Raises:
        SpecError: unknown strategy, or an argument that it can't take.
    """
    text = spec.strip()
    name, colon, argument = text.partition(":")
    if name in SELECTORS:
        params = SELECTORS.get(name).params
        assert issubclass(params, SpecParams)
        try:
            return Spec(text, name, params=params.read(argument if colon else None))
        except SpecError as error:
            raise _about(text, error) from error
    if re.search(r"[/\\]|\.json$", text):
        return Spec(text, "file", path=Path(text))
    raise _unknown(text, name)


def resolve(
    spec: str | Spec, num_layers: int, scores: Scores | None = None, read_region: ReadRegion = _read_region
) -> Region:
    """Return the region that `spec` means on a model with `num_layers` decoder layers.

    Args:
        spec: the SPEC, read or not, or the path of a `region.json`.
        num_layers: decoder layers of the language model.
        scores: what `striate analyze` found; only selectors from scores need it.
        read_region: how the file of a path is read.

    Raises:
        SpecError: the SPEC can't be read, or does not fit the model or the scores.
        ArtifactError: the region file can't be read, or a scorer that the SPEC names was not run.
    """
    if num_layers < 1:
        raise SpecError(f"a model with {num_layers} layers has no region", "1 layer or more", "check the model")
    parsed = spec if isinstance(spec, Spec) else parse_spec(spec)
    if parsed.path is not None:
        return _from_file(parsed, num_layers, read_region(parsed.path))
    assert parsed.params is not None
    try:
        layers = SELECTORS.get(parsed.selector).function(parsed.params, num_layers, scores)
        removable = parsed.params.removable(num_layers, scores)
    except (SpecError, ArtifactError) as error:
        raise _about(parsed.text, error) from error
    return Region(layers=layers, num_layers=num_layers, spec=parsed.text, selector=parsed.selector, removable=removable)


def _from_file(spec: Spec, num_layers: int, region: Region) -> Region:
    if region.num_layers != num_layers:
        raise SpecError(
            f"region {spec.text!r} is of a model with {region.num_layers} layers, and this one has {num_layers}",
            "a region of the same model",
            "choose the region again with `striate select`",
        )
    return region


def _about(text: str, error: StriateError) -> StriateError:
    return type(error)(f"region {text!r}: {error.given}", error.allowed, error.next_step)


def _unknown(text: str, name: str) -> SpecError:
    if re.fullmatch(r"[0-9.]+\s*%?", text):
        hint = f"did you mean {'uniform:' + text!r}?"
    elif re.fullmatch(r"[0-9\s,]+", text):
        hint = f"did you mean {'ids:' + text!r}?"
    else:
        hint = f"{did_you_mean(name, SELECTORS.names())}see `striate ls selectors`"
    allowed = f"{', '.join(SELECTORS.names())}, or the path of a region.json"
    return SpecError(f"region {text!r}: unknown selector {name!r}", allowed, hint)
