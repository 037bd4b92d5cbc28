"""Which files a person means: a file, a folder, a glob, a place in a bucket, a Hugging Face dataset's folder.

    find_files("rows/customer=*/part-*.parquet")   # (File("rows/customer=17/part-0.parquet", ...), ...)

It knows file systems; what names and patterns mean is in `file_names`. It knows nothing of rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from pyarrow.fs import FileInfo, FileType

from ray_lora.data.annotated.opened import YAML, How, again, kind_of, look
from ray_lora.data.annotated.pictures import Annotated
from ray_lora.data.dataset_card import patterns
from ray_lora.data.file_names import ending, is_beside, matches, wild_part
from ray_lora.data.pictures import ENDS, SOUND_ENDS
from ray_lora.data.places import Place
from ray_lora.data.splits import of_split, saved
from ray_lora.data.transcripts import is_transcript, transcripts_of
from ray_lora.errors import DataError

FORMATS = {"parquet": "parquet", "pq": "parquet", "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl"}
FORMATS |= {"arrow": "arrow"}  # the end of a name: the format
_NAMES = "parquet, csv, jsonl"  # and of annotated pictures COCO's json or YOLO's data.yaml, which say so themselves
_TABLES = re.compile(r"(.*/)?metadata\.(csv|jsonl|parquet)")  # what names a folder's files, as `datasets` has it


@dataclass(frozen=True)
class File:
    """One file of rows.

    Attributes:
        path: the path as messages name it.
        size: in bytes.
        stamp: another one whenever the file was written anew.
        partitions: the columns that its folders name: ("customer", "17") of customer=17/part-0.parquet.
        address: what opens it from any folder, keys and options of a bucket included; "": the path itself.
        members: of a folder whose rows are its pictures, or its sounds: their names, in order.
        transcripts: of a folder of sounds: the names of the files that hold what is said in them. Size and stamp are of
            all members and transcripts.
        how: annotations of pictures are read; None for a file that holds its rows itself. `size` and `stamp` are then
            of the pictures too.
    """

    path: str
    size: int
    stamp: str
    partitions: tuple[tuple[str, str], ...] = ()
    address: str = field(default="", repr=False)
    how: How | None = None
    members: tuple[str, ...] = field(default=(), repr=False)
    transcripts: tuple[str, ...] = field(default=(), repr=False)

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.path, self.address) if self.address else Place.of(self.path)

    @property
    def format(self) -> str:
        """parquet, csv, jsonl, arrow, folder, coco or yolo. DataError for another."""
        if self.members:
            return "folder"
        if self.how is not None:
            return self.how.kind
        end = ending(self.path)
        if end not in FORMATS:
            raise DataError(f"data file {self.path!r} ends in {end!r}; give a {_NAMES} file")
        return FORMATS[end]


def find_files(given: str | Sequence[str], split: str = "train", images: str | None = None) -> tuple[File, ...]:
    """The files that paths mean, in their order; a folder's and a glob's by path.

    Args:
        given: a path or several. A folder is all data files below it. Where a folder's names tell splits apart, those
            of `split` are taken.
        split: "train", "validation" or another split's name.
        images: the folder of the pictures of COCO's json files; None: beside them.

    Raises:
        DataError: a path leads nowhere, or to no data file; a file is empty, of another kind or given twice; annotated
            pictures are missing or wrong.
    """
    paths = [given] if isinstance(given, str) else list(given)
    if not paths:
        raise DataError(f"no path is given for the {split} rows; give a {_NAMES} file, a folder or a glob")
    found = [file for path in paths for file in _files(path, split, images)]
    if images is not None and (odd := [file.path for file in found if file.how is None or file.how.kind != "coco"]):
        raise DataError(f"data.images is the folder of the pictures of COCO's json files, and {odd[0]!r} is none")
    seen: dict[str, str] = {}
    for file in found:
        if (identity := file.place.identity) in seen:
            also = f", as {seen[identity]!r} too" if seen[identity] != file.path else ""
            raise DataError(f"data file {file.path!r} is given twice{also}; its rows would count twice")
        seen[identity] = file.path
    return tuple(found)


def _files(path: str, split: str, images: str | None = None) -> list[File]:
    if not path:
        raise DataError(f"a path of the {split} rows is empty; give a {_NAMES} file, a folder or a glob")
    place, wild = Place.of(path), wild_part(path)
    # an address with a pattern may be none that can be asked for
    info = place.info() if wild is None or "://" not in path else None
    if info is not None and info.type == FileType.File:
        return [_annotated(place, split, images) or _file(place, info)]
    if info is not None and info.type == FileType.Directory:
        named = place.below(YAML)
        told = _annotated(named, split, images) if named.info().type == FileType.File else None
        return _folder(place, split) if told is None else [told]
    if info is not None and info.type == FileType.Unknown:
        raise DataError(f"data file {place.name!r} is no file that can be read twice; give a {_NAMES} file")
    if wild is not None:
        return _glob(place.name, *wild, split)
    raise DataError(f"data file {place.name!r} does not exist; give a {_NAMES} file, a folder or a glob")


def _folder(place: Place, split: str) -> list[File]:
    """A folder's data files; those of a split, where names tell splits apart."""
    if (names := saved(place, split)) is not None:  # what `datasets` saved names its own files
        return [_file(place.below(name), place.below(name).info()) for name in names]
    found = {name: info for name, info in place.list() if info.type != FileType.Directory and not is_beside(name)}
    if (globs := patterns(place, split)) is not None:
        steps = [glob.removeprefix("./").split("/") for glob in globs]
        found = {name: info for name, info in found.items() if any(matches(name.split("/"), one) for one in steps)}
        return _of_one_format(place.name, place, found)
    members = next((ends for ends in (ENDS, SOUND_ENDS) if any(ending(name) in ends for name in found)), None)
    if members is not None:
        tables = {name: info for name, info in found.items() if _TABLES.fullmatch(name)}
        if not tables:
            return _members(place, found, split, members)
        found = tables  # the files are theirs to name
    return _of_one_format(place.name, place, _of_split(place.name, found, split))


def _members(place: Place, found: Mapping[str, FileInfo], split: str, ends: Sequence[str]) -> list[File]:
    """Folders of pictures or of sounds, whose names are the labels, but where transcripts lie beside sounds; where the
    folders around them tell splits, those of one."""
    folders: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    for name in found:
        folder, _, last = name.rpartition("/")
        if ending(name) in ends:
            folders.setdefault(folder, []).append(last)
        elif ends is SOUND_ENDS and is_transcript(name):
            texts.setdefault(folder, []).append(last)
        else:
            kind = "pictures" if ends is ENDS else "sounds"
            raise DataError(
                f"{place.name!r} holds {kind} and {place.below(name).name!r}, which is none; take it out, or give "
                f"the folder of the {kind} alone"
            )
    spoken = any(folder in folders for folder in texts)
    # a label may be called "train"; where transcripts are, the folder is none
    around = {folder: f"{folder if spoken else folder.rpartition('/')[0]}/" for folder in folders}
    taken = set(of_split(place.name, list(dict.fromkeys(around.values())), split))
    return [
        _of_members(place.below(folder) if folder else place, sorted(names), folder, texts.get(folder), spoken)
        for folder, names in sorted(folders.items())
        if around[folder] in taken
    ]


def _of_members(folder: Place, names: Sequence[str], below: str, texts: Sequence[str] | None, spoken: bool) -> File:
    transcripts = transcripts_of(folder, names, texts or ()) if spoken else ()
    size, stamp = _seen_members(folder, (*names, *transcripts))
    label = (("label", below.rpartition("/")[2]),) if below and not spoken else ()
    told = (*_partitions(folder.plain), *label)
    return File(folder.name, size, stamp, told, folder.address, members=tuple(names), transcripts=transcripts)


def _seen_members(folder: Place, names: Sequence[str]) -> tuple[int, str]:
    """(size, stamp) of a folder's files together."""
    seen = [_seen(place, place.info()) for place in map(folder.below, names)]
    told = repr([(name, stamp) for name, (_, stamp) in zip(names, seen, strict=True)])
    return sum(size for size, _ in seen), hashlib.sha256(told.encode()).hexdigest()[:32]


def _of_split(said: str, found: dict[str, FileInfo], split: str, pattern: str = "") -> dict[str, FileInfo]:
    return {name: found[name] for name in of_split(said, list(found), split, pattern)}


def _glob(said: str, place: Place, steps: Sequence[str], split: str) -> list[File]:
    """The data files that a pattern below a folder matches, and those in folders that it matches."""
    if place.info().type != FileType.Directory:
        raise DataError(f"{said!r} matches nothing: the folder {place.name!r} does not exist")
    found: dict[str, FileInfo] = {}
    for name, info in place.list(recursive=len(steps) > 1 or "**" in steps):
        if not matches(name.split("/"), steps) or is_beside(name):
            continue
        if info.type == FileType.Directory:
            inner = place.below(name).list()
            found |= {f"{name}/{rest}": one for rest, one in inner if one.type != FileType.Directory}
        else:
            found[name] = info
    found = {name: info for name, info in sorted(found.items()) if not is_beside(name)}
    return _of_one_format(said, place, _of_split(said, found, split, "/".join(steps)))


def _of_one_format(said: str, place: Place, found: Mapping[str, FileInfo]) -> list[File]:
    """Files below a place, all of which hold rows, in one format."""
    formats: dict[str, str] = {}
    for name in found:
        below = place.below(name).name
        if (end := ending(name)) not in FORMATS:
            raise DataError(f"{said!r} holds {below!r}, which ends in {end!r}; only {_NAMES} and arrow files are rows")
        formats.setdefault(FORMATS[end], below)
    if len(formats) > 1:
        kinds = ", ".join(f"{kind} ({name})" for kind, name in formats.items())
        raise DataError(f"{said!r} holds files of several formats: {kinds}; give the files of one")
    if not found:
        raise DataError(f"{said!r} holds no data files; give a {_NAMES} file, a folder or a glob")
    return [_file(place.below(name), info) for name, info in found.items()]


def _annotated(place: Place, split: str, images: str | None) -> File | None:
    """A file of annotations, with its pictures; None for another file."""
    kind = kind_of(place)
    if kind is None:
        return None
    how = How(kind, None if images is None else Place.of(images).address, split)
    found = look(place.address, how)
    size = found.bytes + place.info().size
    return File(place.name, size, found.stamp, tuple(_partitions(place.plain)), place.address, how)


def annotated(file: File) -> Annotated:
    """The annotated pictures of a file that has a `how`. DataError unless they are those that were found."""
    assert file.how is not None
    return again(file.place.address, file.how, file.stamp)


def check_unchanged(file: File) -> None:
    """DataError unless a file is the one that was found: not written anew since, and not gone."""
    if file.how is not None:
        annotated(file)
        return
    names = (*file.members, *file.transcripts)
    seen = _seen_members(file.place, names) if names else _seen(file.place, file.place.info())
    if seen[1] != file.stamp:
        raise DataError(f"data file {file.path!r} has changed since it was found; start again when nobody writes it")


def _file(place: Place, info: FileInfo) -> File:
    """A file that is there, of a kind that is read, with something in it."""
    size, stamp = _seen(place, info)
    file = File(place.name, size, stamp, tuple(_partitions(place.plain)), place.address)
    if file.format and not size:
        raise DataError(f"data file {place.name!r} is empty; it needs at least one row")
    return file


def _seen(place: Place, info: FileInfo) -> tuple[int, str]:
    """(size, stamp) of a file."""
    if info.type != FileType.File:
        raise DataError(f"data file {place.name!r} is no file that can be read (a link that leads nowhere?)")
    if (local := place.local) is None:
        return info.size, f"{info.size}-{(info.mtime_ns or 0) // 10**9}"  # a list's time may be finer than a file's own
    try:
        seen = local.stat()
    except OSError as error:
        raise place.away(error) from None
    return seen.st_size, f"{seen.st_size}-{seen.st_mtime_ns}-{seen.st_ctime_ns}-{seen.st_ino}"


def _partitions(path: str) -> Iterator[tuple[str, str]]:
    """(column, value) of each folder that is named `column=value`."""
    for folder in path.split("/")[:-1]:
        column, equals, value = folder.partition("=")
        if equals and column:
            yield unquote(column), unquote(value)
