"""Pictures of every format, size and depth; damaged ones; and what of them reaches the model."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from attack_configs import checked_and_done
from attack_engine import CLEAN, FAILED, Case, Place, Verdict, judge
from PIL import Image

from striate.errors import DataError

Make = Callable[[Path], None]


def _noise(mode: str = "RGB", size: tuple[int, int] = (40, 32)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def _saved(form: str, mode: str = "RGB", **options: object) -> Make:
    def make(path: Path) -> None:
        _noise(mode).save(path, form, **options)

    return make


def _content(content: bytes) -> Make:
    return lambda path: _write(path, content)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _png(width: int, height: int, depth: int = 8, colour: int = 0, data: bytes | None = None) -> bytes:
    """Return a PNG whose header says so; its pixels, if none are given, are black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    row = 1 + (width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] + 7) // 8
    if data is None:
        data = bytes(row) * min(height, 200_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _cut(form: str, share: float) -> Make:
    def make(path: Path) -> None:
        stream = io.BytesIO()
        _noise(size=(200, 160)).save(stream, form)
        path.write_bytes(stream.getvalue()[: int(len(stream.getvalue()) * share)])

    return make


def _flipped(form: str, seed: int) -> Make:
    def make(path: Path) -> None:
        stream = io.BytesIO()
        _noise(size=(60, 50)).save(stream, form)
        content = bytearray(stream.getvalue())
        rng = np.random.default_rng(seed)
        for _ in range(5):
            content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(content))

    return make


# Each must be refused, or the run be done in its limits.
ANY: dict[str, Make] = {
    "PostScript": _content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\nshowpage\n"),
    "EPS by Pillow": _saved("EPS"),
    "FITS": _content(b"SIMPLE  =                    T".ljust(2880)),
    "QOI": _content(b"qoif" + struct.pack(">IIBB", 8, 8, 3, 0) + b"\xc0" * 9),
    "PCX": _saved("PCX"),
    "TGA": _saved("TGA"),
    "PPM": _saved("PPM"),
    "ICO": _saved("ICO"),
    "SGI": _saved("SGI"),
    "DDS": _saved("DDS"),
    "JPEG 2000": _saved("JPEG2000"),
    "PDF": _saved("PDF"),
    "SVG": _content(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "HTML": _content(b"<html></html>"),
    "a text": _content(b"a cat"),
    "empty": _content(b""),
    "one byte": _content(b"\x89"),
    "1 x 20,000": _content(_png(1, 20_000)),
    "20,000 x 1": _content(_png(20_000, 1)),
    "1 x 1": _content(_png(1, 1)),
    "0 x 0": _content(_png(0, 0)),
    "169 megapixels": _content(_png(13_000, 13_000, 1)),
    "a header of 2**31": _content(_png(2**31 - 1, 2**31 - 1, data=b"")),
    "a header of 60,000 x 60,000": _content(_png(60_000, 60_000, 1, data=b"")),
    "no pixels": _content(_png(40, 32, data=b"")),
    "too few pixels": _content(_png(40, 32, data=bytes(100))),
    "no palette": _content(_png(40, 32, 8, 3)),
    "depth of 3": _content(_png(40, 32, 3)),
    "a text of 100 MB": lambda path: _text_bomb(path),
    "an animation": _saved("GIF", save_all=True, append_images=[_noise()] * 3),
    "a TIFF of three": _saved("TIFF", save_all=True, append_images=[_noise()] * 3),
    "a folder": lambda path: path.mkdir(),
    "turned by EXIF": lambda path: _turned(path),
    "EXIF that is damaged": _saved("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "a profile that is damaged": _saved("PNG", icc_profile=b"nonsense"),
    **{f"mode {mode}": _saved("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    **{f"mode {mode} in TIFF": _saved("TIFF", mode) for mode in ("CMYK", "YCbCr", "LAB", "F", "I")},
    "CMYK in JPEG": _saved("JPEG", "CMYK"),
    **{
        f"{form} cut at {share:.0%}": _cut(form, share)
        for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
        for share in (0.02, 0.3, 0.7, 0.99)
    },
    **{
        f"{form} with flipped bytes {seed}": _flipped(form, seed)
        for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
        for seed in range(4)
    },
}


def _text_bomb(path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "x" * 100_000_000, zip=True)
    _noise().save(path, "PNG", pnginfo=info)


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _noise().save(path, "JPEG", exif=exif)


def _in_pack(make: Make) -> Callable[[Place], Verdict]:
    def play(place: Place) -> Verdict:
        picture = place.pack / "images/square_00.png"
        picture.unlink()
        make(picture)
        return checked_and_done(place, "run", "--set", "prune.remove=0")

    return play


RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))


def _grey(array: np.ndarray, form: str, path: Path) -> None:
    Image.fromarray(array).save(path, form)


GREYS: dict[str, Make] = {
    "8 bits": lambda path: _grey(np.rint(RAMP * 255).astype(np.uint8), "PNG", path),
    "16 bits in PNG": lambda path: _grey(np.rint(RAMP * 65535).astype(np.uint16), "PNG", path),
    "16 bits in TIFF": lambda path: _grey(np.rint(RAMP * 65535).astype(np.uint16), "TIFF", path),
    "16 bits, big end first": lambda path: _grey(np.rint(RAMP * 65535).astype(">u2"), "TIFF", path),
    "12 bits in 16": lambda path: _grey(np.rint(RAMP * 4095).astype(np.uint16), "TIFF", path),
    "32 bits in TIFF": lambda path: _grey(np.rint(RAMP * 2**31 * 0.999).astype(np.int32), "TIFF", path),
    "32 bits of 16": lambda path: _grey(np.rint(RAMP * 65535).astype(np.int32), "TIFF", path),
    "32 bits of 8": lambda path: _grey(np.rint(RAMP * 255).astype(np.int32), "TIFF", path),
    "floats to 1": lambda path: _grey(RAMP.astype(np.float32), "TIFF", path),
    "floats to 255": lambda path: _grey((RAMP * 255).astype(np.float32), "TIFF", path),
    "floats with NaN": lambda path: _grey(np.where(RAMP > 0.9, np.nan, RAMP).astype(np.float32), "TIFF", path),
    "floats below 0": lambda path: _grey((RAMP * 2 - 1).astype(np.float32), "TIFF", path),
    "all of one value": lambda path: _grey(np.full((64, 64), 65535, np.uint16), "PNG", path),
    "1 bit": lambda path: Image.fromarray(RAMP > 0.5).save(path, "PNG"),
    "palette of grey": lambda path: (
        Image.fromarray(np.rint(RAMP * 255).astype(np.uint8)).convert("P").save(path, "PNG")
    ),
    "16 bits in WebP's name": lambda path: _grey(np.rint(RAMP * 65535).astype(np.uint16), "PNG", path),
    "grey and alpha": lambda path: (
        Image.fromarray(np.rint(RAMP * 255).astype(np.uint8)).convert("LA").save(path, "PNG")
    ),
}


def _reaches_the_model(label: str, make: Make) -> Callable[[Place], Verdict]:
    """Return a case of a grey ramp, which the model must see as one, or which is refused."""

    def play(place: Place) -> Verdict:
        from striate.data.pictures import open_image

        path = place.root / "ramp.png"
        make(path)
        try:
            seen = np.asarray(open_image(path, "a"), float)
        except DataError as error:
            return Verdict(CLEAN) if error.allowed and error.next_step else Verdict(FAILED, str(error))
        if label == "all of one value":
            right = seen.min() > 250
        elif label == "1 bit":
            right = 120 < seen.mean() < 135
        else:
            right = 120 < seen.mean() < 135 and len(np.unique(seen)) >= 60
        return Verdict(CLEAN) if right else Verdict(FAILED, f"mean {seen.mean():.0f}, {len(np.unique(seen))} shades")

    return play


NAMES = {
    "a NUL": "a\0.png", "empty": "", "a blank": " ", "the folder": ".", "above": "..", "a link to itself": "loop.png",
    "a link outside": "link.png", "absolute": "/etc/passwd", "far too long": "x" * 5000, "long parts": "x/" * 3000,
    "base64": "data:image/png;base64,AAAA", "a URL": "https://localhost/x.png", "file URL": "file:///etc/passwd",
    "home": "~/x.png", "nobody": "~nobody/x.png", "half an emoji": "\ud83c.png", "an escape": "\x1b[31m.png",
    "newline": "a\nb.png", "backslashes": "..\\..\\x.png", "a device": "/dev/zero", "proc": "/proc/self/environ",
    "outside and back": "../pack/images/square_00.png", "twice": "images/../images/square_00.png",
    "a folder that links outside": "out/secret.png",
}  # fmt: skip
GOOD = {"twice", "outside and back"}


def _named(label: str, name: str, chat: bool, test: bool) -> Callable[[Place], Verdict]:
    def play(place: Place) -> Verdict:
        (place.pack / "loop.png").symlink_to("loop.png")
        Path(place.root / "secret").mkdir()
        _noise().save(place.root / "secret/secret.png")
        (place.pack / "link.png").symlink_to(place.root / "secret/secret.png")
        (place.pack / "out").symlink_to(place.root / "secret")
        if test:
            row = {"id": "i", "image": name, "question": "What?", "answers": ["red"], "metric": "exact"}
            (place.pack / "test.jsonl").write_text(json.dumps(row))
        elif chat:
            turns = [
                {"role": "user", "content": [{"type": "image", "image": name}, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": "red"},
            ]
            (place.pack / "train.json").write_text(json.dumps([{"id": "s", "messages": turns}]))
        else:
            turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
            (place.pack / "train.json").write_text(json.dumps([{"id": "s", "image": name, "conversations": turns}]))
        return judge(place.striate("check", place.config), refused=label not in GOOD)

    return play


def cases() -> list[Case]:
    """Return all cases of pictures."""
    found = [Case("pictures", label, _in_pack(make)) for label, make in ANY.items()]
    found += [Case("grey pictures", label, _reaches_the_model(label, make), ()) for label, make in GREYS.items()]
    found += [
        Case("picture names", f"{where}: {label}", _named(label, name, where == "chat", where == "test"))
        for label, name in NAMES.items()
        for where in ("llava", "chat", "test")
    ]
    return found
