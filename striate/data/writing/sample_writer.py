"""Writes samples as chat messages, one a line, with each picture once beside them under the digest of its bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from striate.data.pictures import FORMATS, PictureLimits, picture_digest, pillow_source, verify_image
from striate.data.samples import Sample
from striate.data.sources.image_folder import IMAGES_FOLDER
from striate.data.sources.stored_pictures import Picture
from striate.errors import DataError
from striate.storage.atomic import cannot_write, new_folder

TRAIN_NAME = "train.jsonl"
ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "MPO": "jpg"}


class SampleWriter:
    """Writes files of one folder, which is its caller's to make whole or to remove."""

    def __init__(self, folder: Path, limits: PictureLimits) -> None:
        self.folder = folder
        self.limits = limits
        self._names: dict[Picture, str] = {}
        self._written: set[str] = set()

    def row(self, sample: Sample) -> dict[str, Any]:
        """Return the sample as a line of `train.jsonl`, after writing its pictures.

        Raises:
            DataError: a picture can't be used.
            ArtifactError: the folder can't be written.
        """
        row: dict[str, Any] = {"id": sample.id}
        if sample.images:
            row["images"] = [self.picture(image, sample.id) for image in sample.images]
        row["messages"] = [{"role": message.role, "content": message.text} for message in sample.messages]
        return row | ({"task": sample.task} if sample.task else {})

    def picture(self, picture: Picture, owner: str) -> str:
        """Return the name under which the picture lies in the folder, decoded and written; raises as `row`."""
        if picture not in self._names:
            self._names[picture] = self._write(picture, owner)
        return self._names[picture]

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Return how many lines the file `name` has, after writing `rows` to it; raises as `row`."""
        path, count = self.folder / name, 0
        try:
            with path.open("w", encoding="utf-8") as stream:
                for row in rows:
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count += 1
        except OSError as error:
            raise cannot_write(path, error) from error
        return count

    def _write(self, picture: Picture, owner: str) -> str:
        verify_image(picture, owner, self.limits)
        with Image.open(pillow_source(picture), formats=FORMATS) as image:
            ending = ENDINGS.get(image.format or "", "img")
        name = f"{IMAGES_FOLDER}/{picture_digest(picture)}.{ending}"
        if name in self._written:
            return name
        place = self.folder / name
        try:
            place.parent.mkdir(exist_ok=True)
            if isinstance(picture, Path):
                shutil.copyfile(picture, place)
            else:
                place.write_bytes(picture.read_bytes())
        except OSError as error:
            raise cannot_write(place, error) from error
        self._written.add(name)
        return name


def whole_samples(records: Iterable[Sample | DataError], limits: PictureLimits) -> tuple[list[Sample], list[DataError]]:
    """Return the samples of which every picture can be decoded, and what is wrong with each of the others."""
    whole: list[Sample] = []
    wrong: list[DataError] = []
    checked: dict[Picture, DataError | None] = {}
    for record in records:
        if isinstance(record, DataError):
            wrong.append(record)
            continue
        for picture in record.images:
            if picture not in checked:
                checked[picture] = _fault(picture, record.id, limits)
        faults = [fault for picture in record.images if (fault := checked[picture])]
        wrong += faults[:1]
        whole += [] if faults else [record]
    return whole, wrong


def _fault(picture: Picture, owner: str, limits: PictureLimits) -> DataError | None:
    try:
        verify_image(picture, owner, limits)
    except DataError as error:
        return error
    return None


def convert(samples: Iterable[Sample | DataError], out: Path, limits: PictureLimits, skips: bool) -> tuple[int, int]:
    """Return how many samples the new folder `out` holds, and how many were left out.

    Args:
        samples: the samples, or what is wrong with a record.
        out: written whole or not at all.
        limits: the largest picture that is decoded.
        skips: whether those that can't be used are left out.

    Raises:
        DataError: one can't be used, or none can.
        ArtifactError: `out` is not new, or can't be written.
    """
    left_out: list[DataError] = []
    with new_folder(out) as folder:
        writer = SampleWriter(folder, limits)

        def rows() -> Iterator[dict[str, Any]]:
            for sample in samples:
                try:
                    if isinstance(sample, DataError):
                        raise sample
                    row = writer.row(sample)
                except DataError as error:
                    if not skips:
                        raise
                    left_out.append(error)
                    continue
                yield row

        count = writer.write(TRAIN_NAME, rows())
        if not count:
            raise left_out[0] if left_out else DataError("there are no samples", "one or more", "check the source")
    return count, len(left_out)
