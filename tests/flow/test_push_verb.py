"""striate push, and models by their hub id: against a stand-in for the hub that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_stand_in import Hub, serving
from huggingface_hub import constants, hf_api, snapshot_download
from huggingface_hub.utils import _http, close_session
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from striate.cli import app
from striate.errors import ModelError
from striate.models.convert.legacy.legacy_sources import folder_of
from striate.models.io import hub_reach, hub_upload
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.card.model_card import card_text
from striate.models.io.hub_download import fetch_weights
from striate.models.io.load import load_model
from striate.progress import Advance, Silent

WHOLE = {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}


def striate(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, which this process takes for the real one, and a person who is known there."""
    with serving() as hub:
        _point(monkeypatch, hub.address, tmp_path / "cache")
        yield hub
    close_session()
    hub_reach.copy_if_silent.cache_clear()


def _point(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """Let huggingface_hub take `address` for the hub; uploads go by Git LFS, as the stand-in has no Xet store."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))
    monkeypatch.setenv("HF_TOKEN", "of-the-stand-in")
    close_session()
    hub_reach.copy_if_silent.cache_clear()


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_what_is_pushed_is_what_is_pulled(tuned_run: Path, hub: Hub) -> None:
    done = striate("push", tuned_run, "user/small", "--license", "mit")
    assert done.exit_code == 0, done.output
    assert "pruned (" in done.output
    assert "licence: mit" in done.output
    there = hub.repositories["user/small"]
    # The hub's own first commit, and one with everything.
    assert len(there.commits) == 2
    assert set(there.files) > WHOLE
    pulled = digests(Path(snapshot_download("user/small")))
    own = digests(tuned_run / "pruned")
    assert {name: pulled[name] for name in own if name != "README.md"} == {
        name: digest for name, digest in own.items() if name != "README.md"
    }
    assert hashlib.sha256(there.files["model.safetensors"]).hexdigest() == own["model.safetensors"]
    mine, theirs = (
        load_model(place, device="cpu").model.state_dict() for place in (tuned_run / "pruned", "user/small")
    )
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_a_dry_run_sends_nothing(tuned_run: Path, hub: Hub) -> None:
    done = striate("push", tuned_run, "user/small", "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["files"]["model.safetensors"] == (tuned_run / "pruned" / "model.safetensors").stat().st_size
    assert (told["published"], told["license"]) == (None, None)
    assert hub.requests == []


def run_printed(card: str) -> dict[str, Any]:
    """Run the code of a card as it is printed."""
    names: dict[str, Any] = {}
    exec(compile(card.partition("````python\n")[2].partition("````")[0], "README.md", "exec"), names)
    return names


def test_the_printed_code_loads_from_the_hub_and_asks(
    tuned_run: Path, hub: Hub, tiny_llava_dir: Path, saved_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny_llava_dir / "README.md").write_text("---\nlicense: llama3.2\n---\n# a base\n")
    assert striate("push", tiny_llava_dir, "user/base").exit_code == 0
    done = striate("push", tuned_run, "team/tuned", "--model", "tuned", "--base-model", "user/base", "--private")
    assert done.exit_code == 0, done.output
    assert hub.repositories["team/tuned"].private
    card = hub.repositories["team/tuned"].files["README.md"].decode()
    assert "license: llama3.2\n" in card
    assert "base_model: user/base\n" in card
    assert "base_model_relation: adapter\n" in card
    assert "8 of 13 samples, 0.5 epochs" in card
    assert str(tiny_llava_dir.parent) not in card
    shutil.copyfile(saved_pack / "images" / "square_00.png", tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    names = run_printed(card)
    assert names["reply"].shape[1] > names["inputs"]["input_ids"].shape[1]
    own = load_model(tuned_run / "checkpoint", device="cpu").model
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(own(input_ids=ids).logits, names["model"].eval()(input_ids=ids).logits)
    named = json.loads(hub.repositories["team/tuned"].files["adapter_config.json"])
    assert named["base_model_name_or_path"] == "user/base"
    assert torch.equal(own(input_ids=ids).logits, load_model("team/tuned", device="cpu").model(input_ids=ids).logits)


def test_an_adapter_of_the_built_in_model_goes_with_the_name_that_its_base_has_on_the_hub(
    tuned_run: Path, hub: Hub, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tuned_run / "checkpoint", tmp_path / "checkpoint"))
    facts = CardFacts(base=str(tmp_path / "builtin-0"), method="lora", region=None, adapter=True, named="builtin")
    (folder / "README.md").write_text(card_text(facts, folder.name, folder))
    done = striate("push", folder, "user/tuned", "--base-model", "user/base", "--license", "mit")
    assert done.exit_code == 0, done.output
    card = hub.repositories["user/tuned"].files["README.md"].decode()
    assert "Base model: `user/base`." in card
    assert "base = striate.load_model('user/base').model\n" in card


def test_an_adapter_of_the_hub_is_merged_with_its_base_of_the_hub(
    tuned_run: Path, hub: Hub, tiny_llava_dir: Path, tmp_path: Path
) -> None:
    assert striate("push", tiny_llava_dir, "user/base").exit_code == 0
    assert striate("push", tuned_run, "user/tuned", "--model", "tuned", "--base-model", "user/base").exit_code == 0
    done = striate("merge", "user/tuned", "--out", tmp_path / "merged", "--dtype", "float32")
    assert done.exit_code == 0, done.output
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        own, theirs = (
            load_model(place, device="cpu").model(input_ids=ids).logits
            for place in (tuned_run / "checkpoint", tmp_path / "merged")
        )
    assert torch.allclose(own, theirs, atol=1e-4)
    done = striate("export", "user/tuned", "--revision", "main", "--to", "int8", "--out", tmp_path / "small")
    assert done.exit_code == 0, done.output
    assert "base_model: user/base\n" in (tmp_path / "small" / "README.md").read_text()
    served = striate("merge", "user/tuned", "--revision", "nowhere", "--out", tmp_path / "other")
    assert served.exit_code == 1
    assert "no model at 'user/tuned'" in served.output


STEPS = {
    "preupload": "preupload",
    "batch": "objects/batch",
    "store": "/store/",
    "verify": "verify",
    "commit": "/commit/",
}


@pytest.mark.parametrize(
    ("step", "trouble"), [*((step, "drop") for step in STEPS), ("store", "500"), ("commit", "500")]
)
def test_a_broken_upload_leaves_nothing_that_looks_whole(
    step: str, trouble: str, tuned_run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault = lambda method, path: trouble if STEPS[step] in path else ""
    done = striate("push", tuned_run, "user/small")
    assert done.exit_code == 1, done.output
    assert "nothing of the model was published" in done.output
    assert "run the same command again" in done.output.replace("\n", " ")
    assert "Traceback" not in done.output
    assert hub.asked(STEPS[step])
    there = hub.repositories["user/small"]
    assert (len(there.commits), set(there.files)) == (1, {".gitattributes"})
    hub.fault = lambda method, path: ""
    assert striate("push", tuned_run, "user/small").exit_code == 0
    assert set(there.files) > WHOLE


def test_a_commit_whose_answer_is_lost_is_found(tuned_run: Path, hub: Hub) -> None:
    hub.fault = lambda method, path: "drop" if method == "ANSWER" else ""
    done = striate("push", tuned_run, "user/small")
    assert done.exit_code == 0, done.output
    assert hub.repositories["user/small"].head in done.output.replace("\n", "")


def test_a_repository_that_holds_files_is_replaced_only_when_asked(tuned_run: Path, hub: Hub) -> None:
    assert striate("push", tuned_run, "user/small", "--model", "tuned", "--base-model", "user/base").exit_code == 0
    there = hub.repositories["user/small"]
    before = there.files
    done = striate("push", tuned_run, "user/small")
    assert done.exit_code == 1
    assert "is on the hub already, with 8 files" in done.output
    assert there.files == before
    done = striate("push", tuned_run, "user/small", "--overwrite")
    assert done.exit_code == 0, done.output
    assert "removed from it: adapter_config.json, adapter_model.safetensors" in done.output
    assert len(there.commits) == 3
    assert set(there.files) > WHOLE
    assert "adapter_config.json" not in there.files


def test_a_model_that_is_to_be_private_is_not_put_where_everybody_sees_it(tuned_run: Path, hub: Hub) -> None:
    assert striate("push", tuned_run, "user/small").exit_code == 0
    there = hub.repositories["user/small"]
    done = striate("push", tuned_run, "user/small", "--private", "--overwrite")
    assert done.exit_code == 1
    assert "user/small is on the hub already, and everybody sees it" in done.output.replace("\n", " ")
    assert len(there.commits) == 2
    there.private = True
    assert striate("push", tuned_run, "user/small", "--private", "--overwrite").exit_code == 0


def _half(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def _mute(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def test_weights_of_no_numbers_are_not_published(tuned_run: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tuned_run / "checkpoint", tmp_path / "checkpoint"))
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    weights[name][0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    for options in (("--dry-run",), ()):
        done = striate("push", folder, "user/small", "--base-model", "user/base", *options)
        assert done.exit_code == 1
        told = done.output.replace("\n", "")
        assert "adapter_model.safetensors hold values that are infinite or no numbers" in told
        assert name in told
    assert hub.repositories == {}


@pytest.mark.parametrize(("damage", "text"), [(_half, "is damaged"), (_mute, "has no processor: nobody could ask")])
def test_half_a_model_is_not_published(damage: Any, text: str, tuned_run: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tuned_run / "pruned", tmp_path / "pruned"))
    damage(folder)
    done = striate("push", folder, "user/small")
    assert done.exit_code == 1
    assert text in done.output
    assert hub.requests == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("small",), "the repository 'small' is no name of a repository"),
        (("user/../x",), "is no name of a repository"),
        (("other/small",), "you are user on the hub, and may not publish as other"),
        (("user/small", "--model", "tuned"), "has its base model in"),
        (("user/small", "--model", "tuned", "--base-model", "/tmp/x"), "--base-model '/tmp/x' is no name"),
    ],
)
def test_what_can_not_be_published_is_refused(words: tuple[str, ...], text: str, tuned_run: Path, hub: Hub) -> None:
    done = striate("push", tuned_run, *words)
    assert done.exit_code == 1
    assert text in done.output.replace("\n", "")
    assert hub.repositories == {}


def test_without_a_token_the_next_step_is_told(tuned_run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    done = striate("push", tuned_run, "user/small")
    assert done.exit_code == 1
    assert "does not say who you are" in done.output
    assert "hf auth login" in done.output


def test_only_files_of_the_model_go(tuned_run: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tuned_run / "pruned", tmp_path / "pruned"))
    for name in (
        "optimizer.pt",
        "notes.txt",
        ".env",
        "trainer_state.json",
        "training_args.bin",
        "train.jsonl",
        "secrets.json",
    ):
        (folder / name).write_text("mine")
    (folder / "LICENSE.txt").write_text("terms")
    assert striate("push", folder, "user/small").exit_code == 0
    files = set(hub.repositories["user/small"].files)
    assert "LICENSE.txt" in files
    assert files == {file.name for file in (tuned_run / "pruned").iterdir()} - {"training_record.json"} | {
        "LICENSE.txt",
        ".gitattributes",
    }


def test_weights_that_no_loader_reads_stay_here_and_that_is_said(tuned_run: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tuned_run / "pruned", tmp_path / "pruned"))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    shutil.copyfile(folder / "model.safetensors", folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    done = striate("push", folder, "user/small")
    assert done.exit_code == 0, done.output
    left = "consolidated.safetensors, model.safetensors.index.json, pytorch_model.bin"
    assert f"left out, as no loader reads it beside these: {left}\n" in done.output
    assert not any(name in hub.repositories["user/small"].files for name in left.split(", "))
    # Named by config.json, the other file is the model.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "consolidated.safetensors"}))
    told = json.loads(striate("push", folder, "user/other", "--dry-run", "--json").stdout)
    assert "consolidated.safetensors" in told["files"]
    assert told["left_out"] == ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]


def test_a_folder_without_a_card_gets_one(tuned_run: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tuned_run / "pruned", tmp_path / "pruned"))
    (folder / "README.md").unlink()
    assert striate("push", folder, "user/small", "--base-model", "user/base", "--license", "mit").exit_code == 0
    card = hub.repositories["user/small"].files["README.md"].decode()
    assert "base_model: user/base\n" in card
    assert "base_model_relation: finetune\n" in card
    assert "from_pretrained('user/small')" in card
    # Nobody noted what was done to it.
    assert "unchanged" not in card


def test_a_card_of_another_trainer_keeps_its_text_and_names_no_folder_of_this_machine(
    tuned_run: Path, hub: Hub, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tuned_run / "pruned", tmp_path / "pruned"))
    (folder / "README.md").write_text(f"---\nbase_model: {tmp_path}/base\nmodel_name: out\n---\n# Mine\n\nfrom out.\n")
    assert striate("push", folder, "user/small").exit_code == 0
    card = hub.repositories["user/small"].files["README.md"].decode()
    assert str(tmp_path) not in card
    assert "model_name: small" in card
    assert "# Mine\n\nfrom out.\n" in card


def test_a_card_that_can_not_be_read_is_refused(tuned_run: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tuned_run / "pruned", tmp_path / "pruned"))
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    done = striate("push", folder, "user/small")
    assert done.exit_code == 1
    assert "the model card can't be read" in done.output


@pytest.mark.parametrize("place", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_without_a_network_a_hub_id_fails_at_once_in_one_message(
    place: str, tuned_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _point(monkeypatch, place, tmp_path / "cache")
    begin = time.perf_counter()
    with pytest.raises(ModelError, match=r"(?s)no model at 'user/small': the hub can't be reached.*check the network"):
        load_model("user/small")
    with pytest.raises(ModelError, match="can't be reached"):
        folder_of("user/small", "LLM")
    done = striate("push", tuned_run, "user/small")
    assert time.perf_counter() - begin < 5
    assert done.exit_code == 1
    assert "does not say who you are" in done.output
    assert "Retrying" not in capfd.readouterr().err
    close_session()


def test_a_hub_that_is_silent_is_waited_for_seconds(tuned_run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_reach.SECONDS < 5
    assert striate("push", tuned_run, "user/small").exit_code == 0
    load_model("user/small", device="cpu")
    for module in (hub_reach, hub_upload):
        monkeypatch.setattr(module, "SECONDS", 0.2)
    hub_reach.copy_if_silent.cache_clear()
    asked: list[str] = []

    def late(method: str, path: str) -> str:
        asked.append(path)
        time.sleep(1)
        return "drop"

    hub.fault = late
    with pytest.raises(ModelError, match=r"'user/other'.*did not answer within 0.2 s.*nothing of it was downloaded"):
        load_model("user/other")
    # What was downloaded before is used as it is.
    assert load_model("user/small", device="cpu").model.config.text_config.num_hidden_layers == 3
    # Once each: neither again and again nor file by file.
    assert asked == ["/api/models/user/other", "/api/models/user/small"]


BARS = re.compile(r"\d%\|| ?it/s|B/s|Fetching|Upload")
"""What only the bars of the hub's own library have."""


@pytest.mark.parametrize("mode", ["", "--json", "--quiet"])
def test_of_what_is_sent_and_fetched_there_is_one_bar_or_none(
    mode: str, tuned_run: Path, hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ahead, behind = ([mode], []) if mode == "--quiet" else ([], [mode] if mode else [])
    calls: dict[str, list[str | Path]] = {
        "push": ["push", tuned_run, "user/small"],
        "remove-layers": ["remove-layers", "user/small", "--layers", "1", "--out", tmp_path / "less"],
        "inspect": ["inspect", "user/small"],
    }
    for name, words in calls.items():
        done = striate(*ahead, *words, *behind)
        assert done.exit_code == 0, done.output
        told = done.stderr + capfd.readouterr().err
        assert not BARS.search(told + done.output), told
        bar = {"push": "push user/small", "remove-layers": "fetch user/small"}.get(name)
        if bar and mode != "--quiet":
            (line,) = [line for line in (done.stdout + told).splitlines() if line.startswith(bar)]
            assert line.split()[-2] == "kB"
        else:
            assert not told
        if mode == "--json":
            json.loads(done.stdout)


def test_weights_come_by_one_bar_in_bytes(
    tuned_run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert striate("push", tuned_run, "user/small").exit_code == 0
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    size = len(hub.repositories["user/small"].files["model.safetensors"])
    moved: list[int] = []

    class Bytes(Silent):
        @contextmanager
        def track_bytes(self, label: str, total: int) -> Iterator[Advance]:
            assert (label, total) == ("fetch user/small", size)
            yield moved.append

    fetch_weights("user/small", None, Bytes())
    assert sum(moved) == size
    moved.clear()
    fetch_weights("user/small", None, Bytes())
    assert load_model("user/small", device="cpu").model.config.text_config.num_hidden_layers == 3
    # Nothing comes twice, and no bar is drawn but the one.
    assert moved == []
    assert sum(line.startswith("GET") and line.endswith("model.safetensors") for line in hub.requests) == 1
    assert "%|" not in capfd.readouterr().err
