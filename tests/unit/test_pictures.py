"""Pictures reach the model as they look, or are refused by name: formats, sizes, depths of grey, damage."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from striate.data.pictures import ALLOWED, PictureLimits, check_pictures, open_image
from striate.errors import DataError

RAMP = np.tile(np.linspace(0, 255, 64), (64, 1))
GREYS = {
    "eight bits.png": RAMP.astype(np.uint8),
    "sixteen bits.png": (RAMP * 257).astype(np.uint16),
    "sixteen bits.tif": (RAMP * 257).astype(np.uint16),
    "sixteen bits, most significant first.tif": (RAMP * 257).astype(">u2"),
    "from 0 to 1.tif": (RAMP / 255).astype(np.float32),
}
UNCLEAR = {
    "twelve of sixteen.png": ((RAMP * 16).astype(np.uint16), "it has 16 bits, but no value above 4080"),
    "thirty-two bits.tif": ((RAMP * 257).astype(np.int32), "it holds pixels of mode I, which have no agreed range"),
    "beyond 1.tif": (RAMP.astype(np.float32), "it holds real numbers that are not all from 0"),
    "negative.tif": ((RAMP / 255 - 0.5).astype(np.float32), "it holds real numbers that are not all from 0"),
    "not a number.tif": (np.full((4, 4), np.nan, np.float32), "it holds real numbers that are not all from 0"),
}
FOREIGN = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "FITS": b"SIMPLE  =                    T",
    "QOI": b"qoif" + struct.pack(">IIBB", 1, 1, 3, 0) + b"\0" * 12,
    "PDF": b"%PDF-1.4\n",
    "Photoshop": b"8BPS\0\1",
    "Netpbm": b"P6 1 1 255 abc",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "AVIF": b"\0\0\0\x20ftypavif",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


def saved(path: Path, picture: Image.Image | np.ndarray, **options: object) -> Path:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, **options)
    return path


def refusal(path: Path, limits: PictureLimits | None = None) -> str:
    """The error of a picture, which opening and checking it must share."""
    limits = limits or PictureLimits()
    with pytest.raises(DataError) as opened:
        open_image(path, "s1", limits)
    with pytest.raises(DataError) as checked:
        check_pictures({path: "s1"}, limits)
    assert str(opened.value) == str(checked.value)
    return str(opened.value)


@pytest.mark.parametrize("name", GREYS)
def test_every_depth_of_grey_keeps_its_shades(name: str, tmp_path: Path) -> None:
    seen = np.asarray(open_image(saved(tmp_path / name, GREYS[name]), "s1"))
    assert seen.shape == (64, 64, 3)
    assert np.abs(seen.mean(axis=2) - RAMP).max() <= 1
    assert len(np.unique(seen)) == 64


@pytest.mark.parametrize("name", UNCLEAR)
def test_numbers_without_a_known_range_are_refused_by_name(name: str, tmp_path: Path) -> None:
    array, reason = UNCLEAR[name]
    message = refusal(saved(tmp_path / name, array))
    assert message.startswith(f"sample 's1': can't read picture {tmp_path / name}: {reason}")


def test_black_stays_black_and_white_is_zero_where_the_file_says_so(tmp_path: Path) -> None:
    black = saved(tmp_path / "black.png", np.zeros((2, 2), np.uint16))
    assert np.asarray(open_image(black, "s1")).max() == 0
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    turned = saved(tmp_path / "turned.tif", np.full((2, 2), 65535, np.uint16), tiffinfo=tags)
    with Image.open(turned) as written:
        zero_is_white = written.tag_v2[262] == 0
    assert np.asarray(open_image(turned, "s1")).max() == (0 if zero_is_white else 255)


def test_sixteen_bits_with_a_transparent_grey_lie_on_white(tmp_path: Path) -> None:
    values = np.array([[0, 65535], [30000, 30000]], np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 0, 0, 0, 0)), (b"tRNS", struct.pack(">H", 30000))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + written)
    assert np.asarray(open_image(tmp_path / "a.png", "s1"))[..., 0].tolist() == [[0, 255], [255, 255]]


@pytest.mark.parametrize(
    ("picture", "name", "options", "seen"),
    [
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "a.png", {}, (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (200, 0, 0, 255)), "a.webp", {"lossless": True}, (200, 0, 0)),
        (Image.new("LA", (2, 2), (0, 0)), "a.png", {}, (255, 255, 255)),
        (Image.new("LA", (2, 2), (40, 255)), "a.tif", {}, (40, 40, 40)),
        (Image.new("P", (2, 2), 0), "a.png", {"transparency": 0}, (255, 255, 255)),
        (Image.new("P", (2, 2), 0), "a.gif", {"transparency": 0}, (255, 255, 255)),
        (Image.new("1", (2, 2), 1), "a.bmp", {}, (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "a.jpg", {}, (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "a.tif", {}, (255, 0, 0)),
        (Image.new("L", (2, 2), 90), "a.jpg", {}, (90, 90, 90)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_rgb_on_white(
    picture: Image.Image, name: str, options: dict[str, object], seen: tuple[int, ...], tmp_path: Path
) -> None:
    opened = open_image(saved(tmp_path / name, picture, **options), "s1")
    assert (opened.mode, opened.getpixel((1, 1))) == ("RGB", seen)


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.webp", "turned.tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_upright(turn: int, name: str, tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").resize((40, 20)).rotate(20).convert("RGB")
    exif = picture.getexif()
    exif[0x0112] = turn
    opened = open_image(saved(tmp_path / name, picture, exif=exif), "s1")
    assert opened.size == ((20, 40) if turn >= 5 else (40, 20))
    upright = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
    assert np.array_equal(np.asarray(opened), np.asarray(upright))


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_refused_by_name_whatever_theirs(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(FOREIGN[kind])
    message = refusal(tmp_path / "a.png")
    assert f"it is {kind} inside" in message
    assert "allowed: a whole picture in JPEG, PNG, WEBP, GIF, BMP or TIFF, whatever its name" in message


def test_a_name_does_not_choose_the_decoder(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", Image.new("RGB", (3, 2), "red"))
    (tmp_path / "a.png").rename(tmp_path / "a.eps")
    assert open_image(tmp_path / "a.eps", "s1").size == (3, 2)


def test_frames_behind_the_first_are_not_used_and_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    names = ("a.gif", "a.png", "a.webp", "a.tif")
    for name in names:
        options = {"lossless": True} if name == "a.webp" else {}
        saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
        assert open_image(tmp_path / name, "s1").getpixel((0, 0)) == (255, 0, 0)
    still = saved(tmp_path / "still.jpg", frames[0])
    told = check_pictures({tmp_path / name: "s1" for name in (*names, still.name)})
    assert told == "5 pictures (4 of several frames: the first is used)"


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (101, 2)])
def test_lines_of_pixels_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    path = saved(tmp_path / "line.png", Image.new("1", size))
    message = refusal(path)
    assert message == (
        f"sample 's1': picture {path} is {size[0]} x {size[1]} pixels\n"
        "  allowed: at most 64000000 pixels (machine.max_pixels), and sides of at most 50 to 1 (machine.max_ratio)\n"
        "  next:    make it smaller, cut it, remove the sample, or raise the limit"
    )
    assert open_image(path, "s1", PictureLimits(ratio=20_000)).size == size


def test_large_pictures_are_refused_by_their_header(tmp_path: Path) -> None:
    for side, limits in ((13_000, PictureLimits()), (60_000, PictureLimits())):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        whole = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
        (tmp_path / "a.png").write_bytes(whole + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + b"\0\0\0\0IDAT")
        assert "pixels" in refusal(tmp_path / "a.png", limits)
    exact = saved(tmp_path / "b.png", Image.new("RGB", (20, 10)))
    assert open_image(exact, "s1", PictureLimits(pixels=200)).size == (20, 10)
    assert "20 x 10" in refusal(exact, PictureLimits(pixels=199))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.tif"])
def test_truncated_pictures_are_found_by_check(name: str, tmp_path: Path) -> None:
    whole = saved(tmp_path / name, Image.effect_noise((160, 120), 60).convert("RGB")).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert refusal(tmp_path / name).startswith(f"sample 's1': can't read picture {tmp_path / name}: ")


def test_the_first_sample_with_a_damaged_picture_is_named(tmp_path: Path) -> None:
    good = saved(tmp_path / "good.png", Image.new("RGB", (4, 4)))
    owners = {good: "s0"}
    for number in range(1, 4):
        owners[tmp_path / f"bad{number}.png"] = f"s{number}"
        (tmp_path / f"bad{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(
        DataError, match=r"^sample 's1': can't read picture .*bad1\.png: it is none of these, or damaged"
    ):
        check_pictures(owners)
    with pytest.raises(DataError, match=r"^sample 's9': can't read picture .*gone\.png: .*No such file"):
        check_pictures({good: "s0", tmp_path / "gone.png": "s9"})


def test_a_palette_that_is_missing_is_found_by_check_too(tmp_path: Path) -> None:
    content = saved(tmp_path / "a.png", Image.new("P", (4, 4))).read_bytes()
    place = content.index(b"PLTE") - 4
    length = int.from_bytes(content[place : place + 4], "big")
    (tmp_path / "a.png").write_bytes(content[:place] + content[place + length + 12 :])
    with pytest.raises(DataError, match="its palette is missing"):
        check_pictures({tmp_path / "a.png": "s1"})


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mutated_pictures_open_or_are_refused(tmp_path: Path) -> None:
    """Decoders raise errors of every kind for damaged files: all of them name the sample."""
    rng, refused = random.Random(0), []
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        stream = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.effect_noise((24, 16), 60).convert("RGB").save(stream, kind, **({"exif": exif} if kind != "BMP" else {}))
        whole = stream.getvalue()
        for _ in range(60):
            changed = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                changed[rng.randrange(min(len(changed), 400))] = rng.randrange(256)
            (tmp_path / "a").write_bytes(changed[: rng.randint(1, len(changed))] if rng.random() < 0.3 else changed)
            try:
                assert open_image(tmp_path / "a", "s1").mode == "RGB"
            except DataError as error:
                refused.append(str(error))
    assert len(refused) > 50
    assert all(text.startswith("sample 's1': ") for text in refused)
    assert all(ALLOWED in text or "machine.max_pixels" in text for text in refused)
