"""What must stay light stays light, in a process of its own; the vision encoder registers whichever is first."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Sequence

import pytest

# Whole packages; what may not import torch even within functions is a contract in pyproject.toml.
LIGHT_PACKAGES = (
    "striate.artifacts",
    "striate.cli",
    "striate.config",
    "striate.pipeline",
    "striate.reporting",
    "striate.runs",
    "striate.scores",
    "striate.selectors",
    "striate.storage",
    "striate.tasks.benchmarks",
    "striate.tasks.metrics",
    "striate.tasks.packs",
    "striate.tasks.scoring",
)
LIGHT_MODULES = (
    "striate",
    "striate.data.reading",
    "striate.demo.places",
    "striate.harness.suites",
    "striate.stages.report",
    "striate.stages.select",
)
# It runs on every rank of a training.
EXCEPT = {"striate.pipeline.distributed_job"}
HEAVY = ("torch", "transformers", "peft", "accelerate", "safetensors.torch")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def modules_of(package: str) -> list[str]:
    found = importlib.import_module(package)
    return [package, *(module.name for module in pkgutil.walk_packages(found.__path__, f"{package}."))]


def heavy_after(names: Sequence[str]) -> dict[str, list[str]]:
    """What of HEAVY has been imported after each of `names`, imported in turn by a process of their own."""
    code = (
        "import importlib, json, sys\n"
        "found = {}\n"
        f"for name in {list(names)!r}:\n"
        "    importlib.import_module(name)\n"
        f"    found[name] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "print(json.dumps(found))"
    )
    heavy: dict[str, list[str]] = json.loads(python(code))
    return heavy


def test_light_packages_import_no_torch() -> None:
    names = [*LIGHT_MODULES, *(name for package in LIGHT_PACKAGES for name in modules_of(package))]
    names = [name for name in names if name not in EXCEPT]
    assert len(names) > 130
    assert heavy_after(names) == {name: [] for name in names}


@pytest.mark.parametrize("name", sorted(EXCEPT))
def test_exceptions_are_needed(name: str) -> None:
    # Blocked, a heavy import fails at once, where a real one takes seconds.
    code = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
    code += f"try:\n    import {name}\nexcept ImportError as error:\n    print(error)"
    assert "halted" in python(code)


def test_a_training_that_is_up_to_date_needs_torch_alone() -> None:
    """Besides these, `striate train` imports nothing of models and training before it knows that a stage is stale."""
    names = ["striate.pipeline.flow", *sorted(EXCEPT), "striate.models.io.adapter_folder", "striate.models.io.devices"]
    assert heavy_after(names)[names[-1]] == ["torch"]


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


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("import striate; from transformers import AutoConfig", marks=pytest.mark.families),
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
