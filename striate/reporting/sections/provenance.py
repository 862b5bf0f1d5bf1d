"""How to reproduce the run: command, versions, device, seed, fingerprints, config."""

from striate.config import dump_config
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.tables import facts


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


def _commands(artifacts: RunArtifacts) -> Html:
    lines = [artifacts.record.command] if artifacts.record else []
    if artifacts.config:
        lines.append("striate run config.yaml        # the config below, as it is")
    return tag("pre", tag("code", "\n".join(lines) or "no command is recorded (run.json is missing)"))


def _machine(artifacts: RunArtifacts) -> Html | None:
    if not artifacts.record:
        return None
    record = artifacts.record
    pairs = [("striate", record.striate), ("Python", record.python), *record.versions.items()]
    return facts([*pairs, ("device", record.device), ("platform", record.platform), ("seed", str(record.seed))])


def _fingerprints(artifacts: RunArtifacts) -> Html | None:
    if not artifacts.record or not artifacts.record.fingerprints:
        return None
    rows = [(name, tag("code", value)) for name, value in artifacts.record.fingerprints.items()]
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
    text = dump_config(artifacts.config)
    return tag("details", tag("summary", "Full config"), tag("pre", tag("code", text)))
