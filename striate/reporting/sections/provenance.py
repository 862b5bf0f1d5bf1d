"""Everything needed to run it again: command, versions, device, seed, fingerprints, config."""

from __future__ import annotations

from striate.config import dump_config
from striate.reporting.data.run_artifacts import Findings
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.tables import facts


def draw_provenance(found: Findings) -> Html:
    """Return the block on how to repeat the run."""
    return tag("div", _commands(found), _machine(found), _fingerprints(found), _hashes(found), _config(found))


def _commands(found: Findings) -> Html:
    """Return the command that made the run, and the one that repeats it."""
    lines = [found.record.command] if found.record else []
    if found.config:
        lines.append("striate run config.yaml        # the config below, as it is")
    return tag("pre", tag("code", "\n".join(lines) or "no command is recorded (run.json is missing)"))


def _machine(found: Findings) -> Html | None:
    """Return versions, device and seed."""
    if not found.record:
        return None
    record = found.record
    pairs = [("striate", record.striate), ("Python", record.python), *record.versions.items()]
    return facts([*pairs, ("device", record.device), ("platform", record.platform), ("seed", str(record.seed))])


def _fingerprints(found: Findings) -> Html | None:
    """Return the fingerprints of model and data."""
    if not found.record or not found.record.fingerprints:
        return None
    rows = [(name, tag("code", value)) for name, value in found.record.fingerprints.items()]
    return tag("details", tag("summary", "Fingerprints of model and data"), facts(rows, "facts long"))


def _hashes(found: Findings) -> Html | None:
    """Return the hashes of every file that a stage wrote."""
    if not found.record:
        return None
    files = [pair for stage in found.record.stages.values() for pair in stage.outputs.items()]
    if not files:
        return None
    rows = [(name, tag("code", value)) for name, value in files]
    return tag("details", tag("summary", f"Fingerprint of every artifact ({len(rows)})"), facts(rows, "facts long"))


def _config(found: Findings) -> Html | None:
    """Return the whole config, folded away."""
    if not found.config:
        return None
    text = dump_config(found.config)
    return tag("details", tag("summary", "Full config"), tag("pre", tag("code", text)))
