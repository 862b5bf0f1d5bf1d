"""A model is named in one way by every verb: `builtin`, a folder, a hub id, which is asked for before all else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from striate.cli import app
from striate.demo import places
from striate.errors import ModelError

NAMED: dict[str, list[str]] = {
    "inspect": ["inspect", "MODEL"],
    "remove-layers": ["remove-layers", "MODEL", "--layers", "1", "--out", "new"],
    "data": ["data", "DATA", "--model", "MODEL"],
    "ask": ["ask", "MODEL", "What is this?"],
    "chat": ["chat", "MODEL"],
    "bench": ["bench", "MODEL"],
    "merge": ["merge", "MODEL", "--out", "new"],
    "merge's base": ["merge", "FOLDER", "--base", "MODEL", "--out", "new"],
    "export": ["export", "MODEL", "--to", "gguf", "--out", "new"],
    "run": ["run", "RUN.yaml", "--out", "new"],
    "select": ["select", "RUN.yaml", "--out", "new"],
}
OF_THE_HUB = {
    "import": ["import", "MODEL", "--out", "new"],
    "import's vision tower": ["import", "FOLDER", "--vision", "MODEL", "--out", "new"],
    "compose": ["compose", "--vision", "MODEL", "--llm", "FOLDER", "--out", "new"],
}


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the words of a command for a model's name; folder, data and run config lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.json").write_text('[{"id": 1, "conversations": []}]')

    def of(command: list[str], model: str) -> list[str]:
        run = {"model": {"path": model}, "data": {"train": ["data.json"]}}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
        named = {"MODEL": model, "DATA": "data.json", "RUN.yaml": "run.yaml", "FOLDER": "folder"}
        return [named.get(word, word) for word in command]

    return of


@pytest.mark.parametrize("command", NAMED.values(), ids=NAMED)
def test_builtin_stands_wherever_a_model_is_named(
    command: list[str], words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in model is asked for, and not taken for a folder or an id; fetching it is what fails here."""

    def none(*_: Any) -> Path:
        raise ModelError("the built-in model was asked for", "-", "-")

    monkeypatch.setattr(places, "builtin_model", none)
    done = CliRunner().invoke(app, words(command, "builtin"))
    assert (done.exit_code, done.stderr.splitlines()[0]) == (1, "error: the built-in model was asked for")


@pytest.mark.parametrize("command", (NAMED | OF_THE_HUB).values(), ids=NAMED | OF_THE_HUB)
def test_a_hub_id_out_of_reach_is_one_message_before_anything_is_read(command: list[str], words: Any) -> None:
    done = CliRunner().invoke(app, words(command, "owner/no-such-model"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "error: no model at 'owner/no-such-model': HF_HUB_OFFLINE is set, and nothing of it was downloaded before\n"
        "  allowed: a folder of this machine, or a hub id with a network\n"
        "  next:    check the path; for a hub id, unset HF_HUB_OFFLINE\n"
    )


@pytest.mark.parametrize("verb", ["inspect", "remove-layers"])
def test_a_run_folder_is_no_model_and_says_which_of_its_folders_are(verb: str, words: Any, tmp_path: Path) -> None:
    (tmp_path / "folder" / "run.json").write_text("{}")
    shown = CliRunner().invoke(app, words(NAMED[verb], "folder"))
    assert shown.exit_code == 1
    assert shown.stderr == (
        "error: folder is a run folder, not a model\n"
        "  allowed: a model's folder, a hub id such as owner/name, or builtin\n"
        "  next:    write its tuned model as one with `striate merge folder --model tuned --out DIR`, or name"
        " folder/pruned where it is pruned\n"
    )


def test_an_adapter_is_no_whole_model(words: Any, tmp_path: Path) -> None:
    (tmp_path / "folder" / "adapter_config.json").write_text("{}")
    shown = CliRunner().invoke(app, words(NAMED["inspect"], "folder"))
    assert shown.exit_code == 1
    assert "is an adapter without its base model\n" in shown.stderr
    assert "merge both with `striate merge " in shown.stderr


def test_what_asks_the_hub_first_loads_no_library_that_takes_long() -> None:
    """So that the answer comes within seconds: torch alone takes as many."""
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from striate.cli import app\n"
        "done = CliRunner().invoke(app, ['inspect', 'owner/no-such-model'])\n"
        "print(done.exit_code, sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1 []\n"


def test_the_python_call_takes_builtin_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import striate

    def none(*_: Any) -> Path:
        raise ModelError("the built-in model was asked for", "-", "-")

    monkeypatch.setattr(places, "builtin_model", none)
    with pytest.raises(ModelError, match="the built-in model was asked for"):
        striate.load_model("builtin")
