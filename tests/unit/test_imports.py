"""What must stay light stays light, in a process of its own; the vision encoder registers whichever is first."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

LIGHT = [
    "striate",
    "striate.cli",
    "striate.cli.console",
    "striate.config",
    "striate.artifacts",
    "striate.runs.folder",
    "striate.registry",
    "striate.errors",
    "striate.progress",
    "striate.storage.atomic",
    "striate.stages.select",
    "striate.stages.report",
    "striate.selectors.spec.grammar",
    "striate.tasks.packs.reader",
    "striate.data.reading",
    "striate.demo.places",
    "striate.pipeline.validate",
    "striate.cli.options",
    "striate.cli.analysis_verbs",
    "striate.cli.evaluation_verbs",
    "striate.cli.flow_verbs",
    "striate.cli.info_verbs",
    "striate.cli.inspect_verbs",
    "striate.cli.model_verbs",
    "striate.cli.training_verbs",
    "striate.scores.comparison",
    "striate.scores.ranking",
    "striate.cli.views.score_tables",
    "striate.scores.export",
    "striate.pipeline",
]
HEAVY = ("torch", "transformers", "peft", "accelerate", "safetensors.torch")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_light_modules_import_no_torch() -> None:
    heavy = json.loads(
        python(
            "import importlib, json, sys\n"
            "found = {}\n"
            f"for name in {LIGHT!r}:\n"
            "    importlib.import_module(name)\n"
            f"    found[name] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
            "print(json.dumps(found))"
        )
    )
    assert heavy == {name: [] for name in LIGHT}


def test_all_selectors_are_light() -> None:
    code = (
        "import importlib, pkgutil, sys, striate.selectors as package\n"
        "names = [m.name for m in pkgutil.iter_modules(package.__path__)]\n"
        "[importlib.import_module('striate.selectors.' + name) for name in names]\n"
        f"print(len(names) > 5, [heavy for heavy in {HEAVY!r} if heavy in sys.modules])"
    )
    assert python(code) == "True []"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["version"], ["run", "--help"], ["ls", "selectors"], ["ls", "tasks"]], ids=" ".join
)
def test_light_commands_import_no_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['striate', *{arguments!r}]\n"
        "from striate.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('heavy:', [heavy for heavy in {HEAVY!r} if heavy in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "heavy: []"


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        assert "quickstart" in python(
            "import sys; sys.argv = ['striate', '--help']; from striate.cli import main; main()"
        )
        times.append(time.perf_counter() - begin)
    # Half a second is the aim on a quiet machine; a busy one gets some room.
    assert min(times) < 1.5


@pytest.mark.parametrize(
    "first",
    [
        "import striate; from transformers import AutoConfig",
        "from transformers import AutoConfig; import striate",
        "import striate; from transformers import GenerationMixin, AutoConfig",
    ],
)
def test_vision_encoder_is_registered(first: str) -> None:
    code = (
        f"{first}\n"
        "config = AutoConfig.for_model('efficientnet_lite', image_size=64, stages=[[3, 2, 1, 8, 1], [3, 2, 1, 8, 1],"
        " [3, 2, 1, 8, 1], [3, 2, 1, 8, 1], [3, 1, 1, 8, 1]])\n"
        "from transformers import AutoModel\n"
        "print(type(config).__module__, type(AutoModel.from_config(config)).__name__)"
    )
    assert python(code).splitlines()[-1] == "striate.demo.vision_config EfficientNetLiteModel"


def test_public_names_are_all_there() -> None:
    import striate

    assert all(getattr(striate, name) is not None for name in striate.__all__)
    with pytest.raises(AttributeError, match="module 'striate' has no attribute 'nonsense'"):
        striate.nonsense  # noqa: B018
