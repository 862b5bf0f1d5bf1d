"""The mark of tests that run llama.cpp's server, and what they need of it."""

from __future__ import annotations

import pytest
from llama_cpp_server import Answer, llama_server, server_path

needs_server = pytest.mark.skipif(server_path() is None, reason="needs llama-server (the extra `dev` brings one)")

__all__ = ["Answer", "llama_server", "needs_server"]
