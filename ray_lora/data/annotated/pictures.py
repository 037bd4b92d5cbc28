"""Annotated pictures, whoever annotated them, and their rows:

    found = Annotated("instances_train.json", Place.of("train"), pictures, "5f1c...")
    table_of(found, 0, 100)       # {"image": {"bytes", "path"}, "objects": {"bbox", "category", "iscrowd"}}

Pictures stay where they are: their bytes are read with the rows, a stretch at a time.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileType

from ray_lora.data.places import Place
from ray_lora.errors import DataError

SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        (
            "objects",
            pa.struct(
                [
                    ("bbox", pa.list_(pa.list_(pa.float64()))),
                    ("category", pa.list_(pa.string())),
                    ("iscrowd", pa.list_(pa.bool_())),
                ]
            ),
        ),
    ]
)
ENDS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")  # of pictures' names
MOST_NAMED = 10  # faults in one message
_THREADS = 8  # for what waits for a disk
_BYTES = 64 << 20  # of the pictures of one stretch


@dataclass(frozen=True)
class Objects:
    """A picture's objects: COCO's boxes [x, y, width, height] in its pixels, or in shares of its width and height; the
    words of their categories; which of them are crowds."""

    boxes: tuple[tuple[float, ...], ...] = ()
    categories: tuple[str, ...] = ()
    crowds: tuple[bool, ...] = ()
    shares: bool = False

    def row(self, width: int, height: int) -> dict[str, Any]:
        """As a row has them, of a picture of this size."""
        scale = (width, height) * 2 if self.shares else (1, 1, 1, 1)
        boxes = [[value * side for value, side in zip(box, scale, strict=True)] for box in self.boxes]
        return {"bbox": boxes, "category": self.categories, "iscrowd": self.crowds}


@dataclass(frozen=True)
class Picture:
    """A picture that somebody annotated.

    Attributes:
        name: the path to it from the folder of all of them.
        size: width and height that the annotations say; None where they say none.
        bytes, stamp: of the file, as it was found; another stamp whenever it was written anew.
    """

    name: str
    size: tuple[int, int] | None
    objects: Objects
    bytes: int
    stamp: str


@dataclass(frozen=True)
class Annotated:
    """Annotated pictures in their order.

    Attributes:
        where: the file that says what is in them, for messages.
        folder: that they lie in.
        said: what the annotations hold, hashed.
    """

    where: str
    folder: Place
    pictures: tuple[Picture, ...]
    said: str

    @property
    def bytes(self) -> int:
        """Of all pictures."""
        return sum(picture.bytes for picture in self.pictures)

    @property
    def stamp(self) -> str:
        """Another one whenever an annotation or a picture was written anew."""
        seen = hashlib.sha256(self.said.encode())
        for picture in self.pictures:
            seen.update(f"\0{picture.name}\0{picture.stamp}".encode())
        return seen.hexdigest()[:24]


class Faults:
    """What is wrong with a file of annotations: the first of it is named, and all of it counted."""

    def __init__(self, where: str) -> None:
        self._where, self._found, self._count = where, list[str](), 0

    def add(self, what: str, why: str) -> None:
        """One fault: of an annotation, a picture or a line."""
        self._count += 1
        if len(self._found) < MOST_NAMED:
            self._found.append(f"{self._where}, {what}: {why}")

    def close(self) -> None:
        """DataError if there were any."""
        more = self._count - len(self._found)
        if self._found:
            raise DataError("\n".join(self._found + ([f"and {more} more faults in {self._where}"] if more else [])))


def seen(place: Place, info: FileInfo | None = None) -> tuple[int, str] | None:
    """(bytes, stamp) of a file; None where there is none.

    Args:
        info: what a list of a bucket's files says of it; None: it is asked for.
    """
    if place.local is not None:
        try:
            status = place.local.stat()
        except OSError:
            return None
        return (status.st_size, f"{status.st_size}-{status.st_mtime_ns}") if place.local.is_file() else None
    info = place.info() if info is None else info
    if info.type != FileType.File:
        return None
    return info.size, f"{info.size}-{(info.mtime_ns or 0) // 10**9}"  # a list's time may be finer than a file's own


def all_seen(
    folder: Place, names: Sequence[str], listed: Mapping[str, FileInfo] | None = None
) -> list[tuple[int, str] | None]:
    """`seen` of files whose paths begin at a folder, in their order.

    Args:
        listed: in a bucket, what is there by these names; None: the folder is listed, which takes one request for a
            thousand files.
    """
    if folder.local is None:
        if listed is None:
            listed = dict(folder.list(recursive=any("/" in name for name in names)))
        plain = [posixpath.normpath(name) for name in names]
        return [seen(folder.at(name), listed[name]) if name in listed else None for name in plain]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda name: seen(folder.at(name)), names))


def content_of(place: Place) -> bytes:
    """A file's bytes. OSError where it cannot be read."""
    with place.open() as file:
        content: bytes = file.read()
    return content


def leads_out(name: str) -> bool:
    """Whether a picture's name is no path below a folder."""
    return not name or name.startswith(("/", "\\")) or ":" in name or ".." in name.replace("\\", "/").split("/")


def stretches(found: Annotated, most: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of pictures that are read at once: at most so many, and not too many bytes."""
    begin = size = 0
    for at, picture in enumerate(found.pictures):
        if at > begin and (size + picture.bytes > _BYTES or at - begin >= most):
            yield begin, at
            begin, size = at, 0
        size += picture.bytes
    yield begin, len(found.pictures)


def table_of(found: Annotated, begin: int, end: int) -> pa.Table:
    """The rows of pictures [begin, end).

    Raises:
        DataError: a picture has changed, cannot be read, or is of another size than its annotations say.
    """
    pictures = found.pictures[begin:end]
    with ThreadPoolExecutor(_THREADS) as threads:
        contents = list(threads.map(lambda picture: _read(found, picture), pictures))
    faults, rows = Faults(found.where), list[dict[str, Any]]()
    for picture, content in zip(pictures, contents, strict=True):
        try:
            objects = picture.objects.row(*_size_of(picture, content))
        except DataError as error:
            faults.add(f"picture {picture.name!r}", str(error))
            continue
        rows.append({"image": {"bytes": content, "path": picture.name}, "objects": objects})
    faults.close()
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def parts(found: Annotated) -> Iterator[bytes]:
    """What a digest of annotated pictures is made of: what is said of them, and each one's name and bytes."""
    yield found.said.encode()
    for picture in found.pictures:
        yield f"\0{picture.name}\0".encode()
        yield _read(found, picture)


def _read(found: Annotated, picture: Picture) -> bytes:
    place = found.folder.at(picture.name)
    if seen(place) != (picture.bytes, picture.stamp):
        raise DataError(f"picture {place.name!r} has changed since it was found; start again when nobody writes it")
    try:
        return content_of(place)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"picture {place.name!r} cannot be read: {place.why(error)}") from None


def _size_of(picture: Picture, content: bytes) -> tuple[int, int]:
    """Width and height of the upright picture; of one that cannot be read what is said, since its row is named later.

    Raises:
        DataError: it is of another size than its annotations say.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as opened:
            wide, high = opened.size
            turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF's orientation: on its side
    except Exception:  # Pillow's decoders raise errors of many kinds on what is broken
        return picture.size or (1, 1)
    upright = (high, wide) if turned else (wide, high)
    if picture.size is not None and picture.size != upright:
        why = ", since its EXIF orientation turns it" if turned and picture.size == (wide, high) else ""
        raise DataError(
            f"its annotations are of {picture.size[0]} x {picture.size[1]} pixels, and upright it has {upright[0]} x "
            f"{upright[1]}{why}; boxes are in pixels of the upright picture: write both alike"
        )
    return upright
