"""Serves the page of `striate demo`: on loopback unless told otherwise, to nobody else, and asking nobody anything."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.errors import ConfigError

if TYPE_CHECKING:
    from striate.dialogue.page_models import PageModels

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 20 * 2**20
"""The largest picture that may be dropped."""

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:;"
    " script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; media-src 'self' blob:;"
    " connect-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
STYLE = ".facts{margin:0;font-size:13px;color:var(--muted)}"


def check_gradio() -> None:
    """Check that the page can be made here.

    Raises:
        ConfigError: gradio is not installed; the text names the extra.
    """
    if find_spec("gradio") is None:
        raise ConfigError(
            "striate demo needs the package gradio, which is not installed",
            "striate with its extra 'demo'; `striate ask` and `striate chat` need none",
            "pip install 'striate[demo]'",
        )


@contextmanager
def served_page(models: PageModels, host: str, port: int) -> Iterator[str]:
    """Context in which the page is served; yields its address.

    Nothing is shared, measured or fetched: no link through other machines, no telemetry, no fonts of elsewhere. A
    browser may not name a path; its uploads lie in a folder of their own, which is gone afterwards. Requests for other
    hosts' names, as pages of elsewhere could send them, are refused.

    Args:
        models: what is asked.
        host: the address to listen on.
        port: the port; 0 for one that is free.

    Raises:
        ConfigError: the address or port can't be listened on.
    """
    with tempfile.TemporaryDirectory(prefix="striate-demo-") as folder:
        # Read where gradio is imported.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder, GRADIO_RUN_HISTORY="False")
        # It would open more than uploads.
        os.environ.pop("GRADIO_ALLOWED_PATHS", None)
        import gradio as gr
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from striate.dialogue.attention_strip import strip_css
        from striate.dialogue.demo_page import demo_page

        page = demo_page(models, Path(folder))
        names = ["127.0.0.1", "localhost", "[::1]"] if host in LOOPBACK else ["*"]
        try:
            with _asked_directly(host):
                page.queue(api_open=False).launch(
                    server_name=f"[{host}]" if ":" in host else host,
                    server_port=free_port(host, port),
                    share=False,
                    quiet=True,
                    inbrowser=False,
                    prevent_thread_lock=True,
                    show_error=True,
                    max_file_size=MOST_BYTES,
                    allowed_paths=[],
                    footer_links=[],
                    run_history=False,
                    enable_monitoring=False,
                    ssr_mode=False,
                    mcp_server=False,
                    pwa=False,
                    theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                    css=strip_css() + STYLE,
                    app_kwargs={
                        "middleware": [
                            Middleware(TrustedHostMiddleware, allowed_hosts=names),
                            Middleware(_Headers),
                        ]
                    },
                )
        except OSError as error:
            raise _no_place(host, port, error) from error
        try:
            yield str(page.local_url)
        finally:
            page.close(verbose=False)


@contextmanager
def _asked_directly(host: str) -> Iterator[None]:
    """Context in which gradio asks whether its page is there without a proxy, which can't reach it."""
    kept = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    known = kept["no_proxy"] or kept["NO_PROXY"]
    os.environ.update(dict.fromkeys(kept, ",".join(filter(None, (known, *LOOPBACK, host)))))
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


def free_port(host: str, port: int) -> int:
    """Return `port`, or for 0 one that is free, after listening there for a moment.

    Raises:
        ConfigError: the address or port can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((host, port))
            free.listen()
        except OSError as error:
            raise _no_place(host, port, error) from error
        return int(free.getsockname()[1])


def _no_place(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"can't listen on {host}, port {port}: {error.strerror or error}",
        "an address of this machine, and a port that is free",
        "choose others with --host and --port; --port 0 takes one that is free",
    )


class _Headers:
    """Adds to every answer what keeps a browser from loading anything of elsewhere into the page."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        await self._app(scope, receive, sending if scope["type"] == "http" else send)
