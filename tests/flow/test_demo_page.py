"""`striate demo`: the page in a browser, and what it refuses to those who would have more of the machine than that."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener, urlopen

import pytest
from typer.testing import CliRunner

from striate.artifacts import Region
from striate.cli import app, asking_verbs
from striate.dialogue import page_server
from striate.dialogue.answer_stream import answer_stream
from striate.dialogue.answering import Answer, Answerer
from striate.dialogue.attention_strip import attention_strip
from striate.dialogue.conversation import Conversation
from striate.dialogue.page_models import PageModels
from striate.errors import ConfigError
from striate.models.io.load import Loaded, load_model
from striate.pipeline.run_models import models_of

CHROMIUM = os.environ.get("STRIATE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None
)
QUESTION = "What colour is the square?"


@pytest.fixture(scope="module")
def models(run_of_three: Path) -> PageModels:
    loads = {
        label: (lambda path=place.path: load_model(path, device="cpu", merge=True))
        for label, place in models_of(run_of_three).items()
    }
    return PageModels.load("tiny", loads, 6, run_of_three)


@pytest.fixture(scope="module")
def address(models: PageModels) -> Iterator[str]:
    pytest.importorskip("gradio", reason="needs gradio (the extra `dev`)")
    with page_server.served_page(models, "127.0.0.1", 0) as served:
        yield served.rstrip("/")


@pytest.fixture(scope="module")
def picture(saved_pack: Path) -> Path:
    return sorted((saved_pack / "images").iterdir())[0]


def got(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
    """The status and text that the server answers with."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urlopen(Request(url, data=data, headers=named), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def uploaded(address: str, content: bytes) -> tuple[int, str]:
    border = uuid.uuid4().hex
    head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="../../a.png"\r\n\r\n'.encode()
    body = head + content + f"\r\n--{border}--\r\n".encode()
    return got(f"{address}/gradio_api/upload", body, Content_Type=f"multipart/form-data; boundary={border}")


def asked(address: str, picture: Any, question: str = QUESTION) -> tuple[bool, dict[str, Any]]:
    """Whether the page answered, and its output, as its own front end asks."""
    session = uuid.uuid4().hex
    body = {"data": [picture, question], "fn_index": 0, "session_hash": session}
    status, _ = got(f"{address}/gradio_api/queue/join", json.dumps(body).encode(), Content_Type="application/json")
    assert status == 200
    _, text = got(f"{address}/gradio_api/queue/data?session_hash={session}")
    messages = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]
    (done,) = [message for message in messages if message["msg"] == "process_completed"]
    return done["success"], done["output"]


def test_an_upload_is_answered_by_all_models_and_only_uploads_are_opened(
    address: str, models: PageModels, picture: Path
) -> None:
    status, text = uploaded(address, picture.read_bytes())
    assert status == 200
    (place,) = json.loads(text)
    file = {"path": place, "meta": {"_type": "gradio.FileData"}}
    answered, output = asked(address, file)
    assert answered
    conversation = Conversation().showing(picture).asked(QUESTION).sample()
    expected = [answerer.answer(conversation).text for answerer in models.answerers.values()]
    assert output["data"][:6:2] == expected
    assert output["data"][5].count("4 of them image tokens") == 1
    for other in (str(picture), "/etc/passwd", f"{address}/config", "../a.png"):
        for form in ({"path": other, "meta": {"_type": "gradio.FileData"}}, {"path": other}, {"path": place + other}):
            answered, output = asked(address, form)
            assert not answered, form
            assert "uploaded by a user" in output["error"] or "only pictures that were dropped" in output["error"]
    assert got(f"{address}/gradio_api/file={picture}")[0] == 403
    assert got(f"{address}/gradio_api/file=/etc/passwd")[0] == 403


def test_what_is_no_picture_too_large_or_no_question_is_said(address: str) -> None:
    place = json.loads(uploaded(address, b"%PDF-1.4")[1])[0]
    answered, output = asked(address, {"path": place, "meta": {"_type": "gradio.FileData"}})
    assert not answered
    assert output["error"].startswith("can't read picture a.png: it is PDF inside\n")
    assert place not in output["error"]
    assert asked(address, None, " ")[1]["error"] == "ask something about the picture"
    assert "does not fit" in asked(address, None, "word " * 600)[1]["error"]
    assert uploaded(address, bytes(page_server.MOST_BYTES + 1)) == (
        413,
        f"File size exceeded maximum allowed size of {page_server.MOST_BYTES} bytes.",
    )


def test_a_page_of_another_host_reaches_nothing(address: str) -> None:
    assert got(address, Host="evil.example:80") == (400, "Invalid host header")
    with urlopen(address, timeout=60) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    config = json.loads(got(f"{address}/config")[1])
    assert config["analytics_enabled"] is False
    assert json.loads(got(f"{address}/gradio_api/info")[1])["named_endpoints"] == {}


@pytest.mark.browser
def test_the_page_in_a_browser_compares_models_and_asks_nobody_else(
    address: str, models: PageModels, picture: Path
) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    if not CHROMIUM:
        pytest.skip("no Chromium here: install one, or name it in STRIATE_CHROMIUM")
    wrong: list[str] = []
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        own = (address, "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
        page.goto(address)
        page.set_input_files("input[type=file]", picture)
        page.wait_for_selector("[data-testid=image] img, .image-container img")
        page.fill("#question textarea", QUESTION)
        page.click("#ask")
        page.wait_for_selector("#strip .strip svg")
        shown = [page.input_value(f"#answer-{label} textarea") for label in models.answerers]
        conversation = Conversation().showing(picture).asked(QUESTION).sample()
        assert [text.split() for text in shown] == [
            answerer.answer(conversation).text.split() for answerer in models.answerers.values()
        ]
        assert " s to the first token" in page.inner_text("#facts-pruned")
        titles = page.locator("#strip rect title").all_text_contents()
        # Three models, of which the last lacks a layer.
        assert len([title for title in titles if "of the attention" in title]) == 11
        browser.close()
    assert wrong == []


def test_the_strip_counts_layers_as_the_whole_model_does(models: PageModels, picture: Path) -> None:
    sample = Conversation().showing(picture).asked(QUESTION).answered("red").sample()
    rows = {label: models.attention(label, sample) for label in models.answerers}
    assert [list(shares) for shares in rows.values()] == [[0, 1, 2, 3], [0, 1, 2, 3], list(models.kept)]
    assert models.num_layers == 4
    drawing = attention_strip(rows, 4, models.region)
    assert drawing.count("<title>pruned, layer ") == 3
    assert f"layer 0: {100 * rows['start'][0]:.1f}% of the attention" in drawing
    assert drawing.count("<circle") == 3
    assert "<circle" not in attention_strip(rows, 4, None)
    assert attention_strip({"start": {}}, 4, models.region) == ""
    sharp = attention_strip({"<b>": {0: 0.5}}, 1, Region(spec="all", layers=(0,), num_layers=1))
    assert "<b>" not in sharp


def test_an_answer_that_nobody_waits_for_ends(tiny_llava: Loaded) -> None:
    answerer = Answerer(tiny_llava.model, tiny_llava.processor, 400)
    stream = answer_stream(answerer, Conversation().asked(QUESTION).sample())
    assert isinstance(next(stream), str)
    stream.close()
    whole = list(answer_stream(Answerer(tiny_llava.model, tiny_llava.processor, 5), Conversation().asked("?").sample()))
    assert isinstance(whole[-1], Answer)
    assert "".join(map(str, whole[:-1])).strip() == whole[-1].text


@pytest.mark.parametrize("words", [["RUN", "--models", "start,pruned"], ["MODEL", "--host", "localhost"]])
def test_the_verb_serves_until_it_is_stopped_and_clears_up(
    run_of_three: Path, tiny_llava_dir: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="needs gradio (the extra `dev`)")
    folders: list[Path] = []

    def stopped() -> None:
        folders.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        assert folders[0].is_dir()

    monkeypatch.setattr(asking_verbs, "_wait_for_the_end", stopped)
    places = {"RUN": str(run_of_three), "MODEL": str(tiny_llava_dir)}
    typed = [places.get(word, word) for word in words]
    shown = CliRunner().invoke(app, ["demo", *typed, "--device", "cpu", "--port", "0"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith(("http://127.0.0.1:", "http://localhost:"))
    assert "every machine" not in shown.stdout
    assert not folders[0].exists()


def test_a_proxy_is_not_asked_for_a_page_of_this_machine(models: PageModels, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="needs gradio (the extra `dev`)")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with page_server.served_page(models, "127.0.0.1", 0) as served:
        assert build_opener(ProxyHandler({})).open(served, timeout=60).status == 200
    assert "no_proxy" not in os.environ


def test_an_address_of_six_parts_has_brackets(models: PageModels, monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio", reason="needs gradio (the extra `dev`)")
    launched: list[str] = []

    def launch(page: Any, **options: Any) -> None:
        launched.append(options["server_name"])
        raise OSError("enough")

    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    monkeypatch.setattr(page_server, "free_port", lambda host, port: port)
    with pytest.raises(ConfigError, match="can't listen on ::1, port 7860: enough"):
        page_server.served_page(models, "::1", 7860).__enter__()
    assert launched == ["[::1]"]


def test_a_port_that_is_taken_is_said(address: str, models: PageModels) -> None:
    port = int(address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1, port {port}: Address already in use"):
        page_server.served_page(models, "127.0.0.1", port).__enter__()


def test_an_address_that_is_not_of_this_machine_is_said_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_server, "find_spec", lambda name: True)
    shown = CliRunner().invoke(app, ["demo", "nowhere/at/all", "--host", "192.0.2.1"])
    assert shown.exit_code == 1
    assert "can't listen on 192.0.2.1, port 7860: " in shown.stderr
    assert "--port 0 takes one that is free" in shown.stderr


def test_without_gradio_one_message_says_what_to_install(run_of_three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(page_server, "find_spec", lambda name: None if name == "gradio" else found(name))
    shown = CliRunner().invoke(app, ["demo", str(run_of_three)])
    assert shown.exit_code == 1
    assert shown.stderr.splitlines() == [
        "error: striate demo needs the package gradio, which is not installed",
        "  allowed: striate with its extra 'demo'; `striate ask` and `striate chat` need none",
        "  next:    pip install 'striate[demo]'",
    ]
