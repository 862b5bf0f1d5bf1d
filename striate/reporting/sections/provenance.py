"""How to reproduce the run: command, versions, device, seed, fingerprints, config."""

import yaml

from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.html.tables import facts
from striate.reporting.sections.next_steps import WHERE, commands_to_repeat
from striate.storage.local_places import last_part, without_places


def draw_provenance(artifacts: RunArtifacts) -> Html:
    """Return the block on how to repeat the run."""
    return tag(
        "div",
        _commands(artifacts),
        _machine(artifacts),
        _fingerprints(artifacts),
        _hashes(artifacts),
        _config(artifacts),
    )


def _commands(artifacts: RunArtifacts) -> Child:
    lines = commands_to_repeat(artifacts)
    where = f"The second, {WHERE}, makes the run again from its config. " if len(lines) > 1 else ""
    note = f"{where}Paths of that machine are cut to their last parts."
    code = tag("pre", tag("code", "\n".join(lines) or "no command is recorded (run.json is missing)"))
    return [code, tag("p", note, class_="caption") if lines else None]


def _machine(artifacts: RunArtifacts) -> Html | None:
    if not artifacts.record:
        return None
    record = artifacts.record
    pairs = [("striate", record.striate), ("Python", record.python), *record.versions.items()]
    return facts([*pairs, ("device", record.device), ("platform", record.platform), ("seed", str(record.seed))])


def _fingerprints(artifacts: RunArtifacts) -> Html | None:
    if not artifacts.record or not artifacts.record.fingerprints:
        return None
    rows = [(last_part(name), tag("code", value)) for name, value in artifacts.record.fingerprints.items()]
    return tag("details", tag("summary", "Fingerprints of model and data"), facts(rows, "facts long"))


def _hashes(artifacts: RunArtifacts) -> Html | None:
    if not artifacts.record:
        return None
    files = [pair for stage in artifacts.record.stages.values() for pair in stage.outputs.items()]
    if not files:
        return None
    rows = [(name, tag("code", value)) for name, value in files]
    return tag("details", tag("summary", f"Fingerprint of every artifact ({len(rows)})"), facts(rows, "facts long"))


def _config(artifacts: RunArtifacts) -> Html | None:
    if not artifacts.config:
        return None
    places = without_places(artifacts.config.model_dump(mode="json"))
    text = yaml.safe_dump(places, sort_keys=False, allow_unicode=True)
    return tag("details", tag("summary", "Full config"), tag("pre", tag("code", text)))
