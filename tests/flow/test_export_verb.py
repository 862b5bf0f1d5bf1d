"""striate export: a run's model for llama.cpp, Ollama and vLLM, and in 8 bits; what serves it is printed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import pytest
import torch
from gguf_kit import build, pictures
from llama_kit import llama_server, needs_server
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner, Result

from striate.cli import app
from striate.config import RunConfig
from striate.models.convert import vllm_adapter
from striate.models.convert.vllm_rules import adapter_problems, model_problem, rank_option
from striate.models.io import load
from striate.models.io.load import load_model, read_config
from striate.pipeline import Flow

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

QUESTION = "What colour is the square?"
CHAT = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def striate(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["export", *(str(word) for word in words)])


@pytest.fixture(scope="module")
def run(run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has tuned, pruned and refitted, and asked nothing."""
    out = tmp_path_factory.mktemp("export") / "run"
    settings = ("train.max_steps=2", "evaluate.packs=[]", "prune.remove=1", "prune.compensate=refit")
    Flow(run_config(*settings, "analyze.samples=2"), out).everything()
    return out


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LLaVA with SigLIP, whose picture stands on a line of its own."""
    from transformers import LlavaProcessor

    family = build("llava-siglip")
    words = family.processor.tokenizer
    processor = LlavaProcessor(
        image_processor=family.processor.image_processor,
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template=CHAT,
        image_token="<image>",
    )
    folder = tmp_path_factory.mktemp("siglip") / "model"
    family.model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, **change: Any) -> Path:
    """Return the folder of an adapter on two decoder layers of `base`."""
    model = load_model(base, device="cpu").model
    names = [f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in (0, 2)]
    wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": names, **change}))
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(folder)
    return folder


@needs_server
def test_a_pruned_and_refitted_model_answers_in_llama_cpp(run: Path, tmp_path: Path) -> None:
    done = striate(run, "--to", "gguf", "--type", "f32", "--out", tmp_path / "Model 1")
    assert done.exit_code == 0, done.output
    assert "pruned (" in done.output
    assert "CLIP's class token last" in done.output
    assert f"llama-server -m '{tmp_path}/Model 1/language-f32.gguf' --mmproj" in done.output
    assert f"ollama create model-1 -f '{tmp_path}/Model 1/Modelfile'" in done.output
    files = sorted(path.name for path in (tmp_path / "Model 1").iterdir())
    assert files == ["Modelfile", "language-f32.gguf", "mmproj-f16.gguf"]
    loaded = load_model(run / "pruned", device="cpu")
    words = loaded.processor.tokenizer
    ids = words(QUESTION, return_tensors="pt")["input_ids"]
    ends = words.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    ours = loaded.model.generate(input_ids=ids, max_new_tokens=8, suppress_tokens=ends, do_sample=False)
    with llama_server(tmp_path / "Model 1" / "language-f32.gguf") as server:
        assert server.answer(QUESTION, None, "", 8).ids == ours[0, ids.shape[1] :].tolist()


@needs_server
def test_a_chat_about_five_pictures_is_the_processors(siglip: Path, tmp_path: Path) -> None:
    """llama.cpp's own chat, with the template in the file, asks as the processor does: line ends and all."""
    done = striate(siglip, "--to", "gguf", "--type", "f32", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    loaded = load_model(siglip, device="cpu")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = loaded.processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == f"[user]<image>\n{QUESTION}</s>[assistant]"
    equal = 0
    with llama_server(tmp_path / "out" / "language-f32.gguf", tmp_path / "out" / "mmproj-f16.gguf") as server:
        for picture in pictures(5):
            inputs = loaded.processor(images=picture, text=text, return_tensors="pt", add_special_tokens=False)
            ours = loaded.model.generate(**inputs, max_new_tokens=6, do_sample=False)
            theirs = server.chat(QUESTION, picture, 6)
            assert theirs["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
            told = loaded.processor.tokenizer.decode(ours[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            equal += theirs["choices"][0]["message"]["content"] == told
    # One near tie of random weights may go the other way.
    assert equal >= 4


def test_the_modelfile_writes_a_conversation_as_the_processor_does(siglip: Path, tmp_path: Path) -> None:
    assert striate(siglip, "--to", "gguf", "--type", "q8_0", "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "Modelfile").read_text() == (
        "FROM ./language-q8_0.gguf\nFROM ./mmproj-f16.gguf\n"
        'TEMPLATE """{{ if .System }}[system]{{ .System }}</s>[user]{{ else }}[user]{{ end }}{{ .Prompt }}'
        '</s>[assistant]{{ .Response }}</s>"""\n'
        'PARAMETER stop "</s>"\nPARAMETER temperature 0\n'
    )
    kinds = {
        tensor.name: tensor.tensor_type.name
        for tensor in gguf.GGUFReader(tmp_path / "out" / "language-q8_0.gguf").tensors
    }
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"


def test_vllm_gets_an_adapter_that_it_takes(siglip: Path, tmp_path: Path) -> None:
    source = adapter(siglip, tmp_path / "adapter")
    done = striate(source, "--to", "vllm", "--out", tmp_path / "red")
    assert done.exit_code == 0, done.output
    assert f"vllm serve {siglip} --enable-lora --max-lora-rank 8 --lora-modules red={tmp_path}/red" in done.output
    assert sorted(path.name for path in (tmp_path / "red").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((tmp_path / "red" / "adapter_config.json").read_text())["modules_to_save"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modules_to_save": ["multi_modal_projector"]}, "modules that trained whole (modules_to_save)"),
        ({"use_dora": True}, "it is a DoRA"),
        ({"init_lora_weights": "pissa"}, "it began as pissa, which changes the base weights too"),
        ({"rank_pattern": {"layers.0.self_attn.q_proj": 2}}, "different ranks or scales"),
        ({"target_modules": ["model.multi_modal_projector.linear_1"]}, "it adapts more than decoder layers"),
    ],
)
def test_vllm_gets_a_whole_checkpoint_else(siglip: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    source = adapter(siglip, tmp_path / "adapter", **change)
    done = striate(source, "--to", "vllm", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert said in done.output
    assert f"vllm serve {tmp_path}/out --served-model-name out" in done.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_vllm_finds_a_base_that_was_named_from_the_working_folder(
    siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = adapter(siglip, tmp_path / "adapter")
    file = source / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "model"}))
    monkeypatch.chdir(siglip.parent)
    done = striate(source, "--to", "vllm", "--out", tmp_path / "out")
    assert f"vllm serve {siglip} --enable-lora" in done.output
    assert json.loads((tmp_path / "out" / file.name).read_text())["base_model_name_or_path"] == str(siglip)


def test_vllm_is_told_which_revision_of_the_base(siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base on the hub may have moved on since."""
    source = adapter(siglip, tmp_path / "adapter")
    file, config = source / "adapter_config.json", read_config(siglip)
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "a/b", "revision": "v1"}))
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(load, "read_config", lambda name, revision: asked.append((name, revision)) or config)
    monkeypatch.setattr(vllm_adapter, "problems_of", lambda folder: [])
    done = striate(source, "--to", "vllm", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "vllm serve a/b --revision v1 --enable-lora" in done.output
    assert asked == [("a/b", "v1")]


def test_what_vllm_takes(tiny_llava: Loaded) -> None:
    lora = {"peft_type": "LORA", "r": 128}
    assert adapter_problems(lora, []) == []
    assert adapter_problems({"peft_type": "IA3"}, []) == ["it is IA3, and vLLM knows LoRA alone"]
    assert adapter_problems({**lora, "r": 600, "bias": "all"}, []) == [
        "it holds trained biases",
        "its rank 600 is above 512",
    ]
    assert adapter_problems({**lora, "lora_bias": True}, []) == ["it holds trained biases"]
    assert adapter_problems({**lora, "init_lora_weights": "gaussian"}, []) == []
    assert adapter_problems({**lora, "target_parameters": ["a"]}, []) == [
        "it adapts single tensors of modules (target_parameters)"
    ]
    assert [rank_option(rank) for rank in (1, 8, 9, 129, 512)] == [8, 8, 16, 256, 512]
    config = tiny_llava.model.config
    config.architectures = ["LlavaForConditionalGeneration"]
    assert model_problem(config) == ""
    config.vision_config.model_type = "dinov2"
    assert "vLLM's LLaVA has no vision encoder 'dinov2'" in model_problem(config)
    config.architectures = ["Kosmos2ForConditionalGeneration"]
    assert model_problem(config) == "vLLM has no model of its own for Kosmos2ForConditionalGeneration"


def test_eight_bits_of_a_tuned_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = striate(run, "--model", "tuned", "--to", "int8", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert (told["model"], list(told["files"])) == ("tuned", ["model.safetensors"])
    assert "28 matrices of decoder layers" in told["what"]
    assert any(f"vllm serve {tmp_path}/out" in command for command in told["commands"])
    out = tmp_path / "out"
    assert {"README.md", "region.json", "processor_config.json"} < {file.name for file in out.iterdir()}
    card = (out / "README.md").read_text()
    assert "tuned in 2 of 4 layers" in card
    assert (
        "The adapter is added into the weights, which are bfloat16. Its quantised matrices are 8-bit integers." in card
    )
    capsys.readouterr()
    model = load_model(out, device="cpu").model
    assert model.config.text_config.num_hidden_layers == 4
    assert model(input_ids=torch.tensor([[5, 6]])).logits.isfinite().all()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere", "--to", "gguf"), "there is no such folder"),
        (("RUN", "--to", "gguf", "--model", "healed"), "has no model 'healed'"),
        (("RUN", "--to", "vllm", "--type", "f16"), "--type and --text-only are of --to gguf"),
        (("RUN", "--to", "gguf", "--out", "FULL"), "exists already"),
        (("RUN", "--to", "int8", "--revision", "main"), "--revision 'main' is of a model on the hub"),
    ],
)
def test_mistakes_are_told(run: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    places = {"RUN": str(run), "FULL": str(run)}
    given = [places.get(word, word) for word in words]
    done = striate(*given, *(() if "--out" in words else ("--out", tmp_path / "out")))
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert not list(tmp_path.iterdir())


def test_a_template_without_an_end_is_told(siglip: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(siglip, tmp_path / "model"))
    (source / "chat_template.jinja").write_text("{{ 'a' * 10**10 }}")
    done = striate(source, "--to", "gguf", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "chat template" in done.output
    assert not (tmp_path / "out").exists()


def test_a_killed_or_full_disk_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from striate.models.convert.gguf import gguf_writer

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_writer.gguf.GGUFWriter, "write_tensor_data", full)
    done = striate(run, "--to", "gguf", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert f"can't write {tmp_path / 'out'}: No space left on device" in done.output.replace("\n", "")
    assert not list(tmp_path.iterdir())
