"""What a version holds is whole and verified before anybody is told of it: a card, a size, a time are only claims."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow.fs
import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.errors import AdapterError, AdapterNotFoundError
from ray_lora.recipe import LoraSpec
from ray_lora.store import BeingWrittenError, Entry, StoreAwayError, open_store, put_once
from ray_lora.store.bucket import BucketFiles
from ray_lora.store.files import Stat
from ray_lora.store.folder import FolderStore
from ray_lora.store.local import LocalFiles
from ray_lora.tasks.text_classification import TextClassificationSpec

PARTS = ("adapter_config.json", "adapter_model.safetensors", "ray_lora.json")
WEIGHTS = PARTS[1]


def adapter(seed: int) -> Adapter:
    chance = torch.Generator().manual_seed(seed)
    pair = LowRank(torch.randn(2, 8, generator=chance), torch.randn(8, 2, generator=chance))
    head = {"classifier.weight": torch.randn(2, 8, generator=chance)}
    card = Card(task=TextClassificationSpec(labels=("no", f"yes{seed}")), base="tiny")
    return Adapter(LoraSpec(r=2), {"bert.layer.query": pair}, head, card, "SEQ_CLS", ("classifier",))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> float:
    """How long a folder without a card must rest: longer than this test takes to look at it."""
    monkeypatch.setenv("RAY_LORA_SETTLE_S", "30")
    return 30.0


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    opened = open_store(str(tmp_path / "store"))
    assert isinstance(opened, FolderStore)
    opened.put(adapter(1), "tweets")
    return opened


def weights(store: FolderStore, version: int) -> Path:
    found = store._files.local("tweets", f"{version}/")
    assert found is not None
    return found / WEIGHTS


def source(tmp_path: Path, seed: int) -> Path:
    adapter(seed).save(tmp_path / f"source{seed}")
    return tmp_path / f"source{seed}"


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("order", [PARTS, PARTS[::-1], (PARTS[1], PARTS[0], PARTS[2]), (PARTS[2], PARTS[0], PARTS[1])])
@pytest.mark.parametrize("keep", [shutil.copy, shutil.copy2])
def test_a_copy_file_by_file_is_nobody_until_it_is_whole(
    order: tuple[str, ...], keep: Callable[[Path, Path], object], store: FolderStore, tmp_path: Path
) -> None:
    """Whatever order its files come in, and also where they keep the times of their source."""
    given, home = source(tmp_path, 2), tmp_path / "store/tweets/2"
    for part in PARTS:
        os.utime(given / part, (1e9, 1e9))
    home.mkdir()
    for part in order[:-1]:
        keep(given / part, home / part)
        assert store.resolve("tweets").sha256 == adapter(1).sha256
        assert store.resolve("tweets").task == adapter(1).card.task
        with pytest.raises((BeingWrittenError, AdapterNotFoundError)):
            store.resolve("tweets@2")
    keep(given / order[-1], home / order[-1])
    while order != PARTS and store.resolve("tweets").version != 2:  # a file that was read a moment ago is not at once
        time.sleep(0.01)
    entry, loaded = store.load("tweets")
    assert entry.sha256 == loaded.sha256 == adapter(2).sha256
    assert entry.task == adapter(2).card.task


def test_a_folder_without_a_card_is_whole_once_it_was_left_alone(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_LORA_SETTLE_S", "0.5")
    given = source(tmp_path, 2)
    (given / PARTS[2]).unlink()
    began = time.time()
    shutil.copytree(given, tmp_path / "store/tweets/2")
    with pytest.raises(BeingWrittenError, match="no card yet"):
        store.resolve("tweets@2")
    while store.resolve("tweets").version != 2:
        time.sleep(0.01)
    assert time.time() - began >= 0.5
    assert store.resolve("tweets").sha256 == Adapter.load(given).sha256


def test_a_card_that_is_taken_away_for_a_moment_gives_nobody_other_labels(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that stay are old; `cp --remove-destination`, tar and git take a file away before they write it."""
    monkeypatch.setattr(time, "time", lambda: 4e9)
    monkeypatch.setenv("RAY_LORA_SETTLE_S", "30")
    store.resolve("tweets")
    for _ in range(2):
        card = weights(store, 1).with_name(PARTS[2])
        kept = card.read_bytes()
        card.unlink()
        for _ in range(3):
            with pytest.raises(BeingWrittenError, match="no card yet"):
                store.resolve("tweets@1")
        card.write_bytes(kept)
        assert patient(store, "tweets@1").sha256 == adapter(1).sha256
    monkeypatch.setenv("RAY_LORA_SETTLE_S", "0.2")
    card.unlink()
    entry = patient(store, "tweets")  # nobody wrote it again: it is what plain PEFT reads
    assert (entry.task, entry.sha256 == adapter(1).sha256) == (None, False)


def test_who_never_saw_the_card_waits_for_it_as_well(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is old; the folder itself has changed."""
    time.sleep(0.6)
    monkeypatch.setenv("RAY_LORA_SETTLE_S", "0.5")
    weights(store, 1).with_name(PARTS[2]).unlink()
    fresh = FolderStore(LocalFiles(tmp_path / "store"), store.uri)
    with pytest.raises(BeingWrittenError, match="no card yet"):
        fresh.resolve("tweets")
    assert patient(fresh, "tweets").task is None


def patient(store: FolderStore, ref: str) -> Entry:
    """What a ref names once it is no longer being written."""
    while True:
        try:
            return store.resolve(ref)
        except BeingWrittenError:
            time.sleep(0.01)


def test_an_old_folder_without_a_card_is_whole_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = source(tmp_path, 2)
    (given / PARTS[2]).unlink()
    shutil.copytree(given, tmp_path / "store/plain")
    time.sleep(0.3)
    monkeypatch.setenv("RAY_LORA_SETTLE_S", "0.3")
    assert open_store(str(tmp_path / "store")).resolve("plain").version == 1


def rescale(file: Path) -> None:
    save_file({key: value * 2 for key, value in load_file(file).items()}, file, {"format": "pt"})


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def poison(file: Path) -> None:
    save_file({key: value * float("nan") for key, value in load_file(file).items()}, file, {"format": "pt"})


def exchange(file: Path) -> None:
    """Another adapter's weights of the same shapes."""
    adapter(7).save(file.parent.parent / "tmp")
    (file.parent.parent / "tmp" / WEIGHTS).replace(file)
    shutil.rmtree(file.parent.parent / "tmp")


def retrain(file: Path) -> None:
    """The config says twice the scaling."""
    config = file.parent / PARTS[0]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 99}))


def relabel(file: Path) -> None:
    card = file.parent / PARTS[2]
    card.write_text(card.read_text().replace("yes2", "maybe"))


DAMAGE = [rescale, truncate, poison, exchange, retrain, relabel, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("known", [False, True])
def test_what_is_not_what_its_card_says_is_set_aside(
    damage: Callable[[Path], None], known: bool, store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen before or not: the version before answers, the reason is given to who asks for it, and mending mends."""
    store.put(adapter(2), "tweets")
    file = weights(store, 2)
    whole = {part: (file.parent / part).read_bytes() for part in PARTS}
    if known:
        assert store.resolve("tweets").version == 2
    else:
        store = FolderStore(store._files, store.uri)
    stat = file.stat()
    damage(file)
    if file.exists():
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.recall("tweets") is None
    for _ in range(3):
        entry, loaded = store.load("tweets")
        assert (entry.version, entry.sha256, loaded.sha256) == (1, adapter(1).sha256, adapter(1).sha256)
    assert store.recall("tweets") == entry
    assert sum("is not what tweets means" in line for line in caplog.messages) == 1
    with pytest.raises(AdapterError, match=r"content hash|torn|finite|has no adapter_model"):
        store.resolve("tweets@2")
    for part, content in whole.items():
        (file.parent / part).write_bytes(content)
    assert store.resolve("tweets").sha256 == adapter(2).sha256


def test_a_champion_is_never_another_version(store: FolderStore) -> None:
    store.put(adapter(2), "tweets", ["champion"])
    rescale(weights(store, 2))
    for ref in ("tweets", "tweets@champion", "tweets@2"):
        with pytest.raises(AdapterError, match="content hash"):
            store.load(ref)
    assert store.resolve("tweets@1").sha256 == adapter(1).sha256


def test_swapped_folders_answer_for_what_they_hold(store: FolderStore, tmp_path: Path) -> None:
    """mv 1 x, mv 2 1, mv x 2: the files' own times do not change."""
    store.put(adapter(2), "tweets")
    hashes = [store.resolve(f"tweets@{version}").sha256 for version in (1, 2)]
    home = tmp_path / "store/tweets"
    for one, other in (("1", "x"), ("2", "1"), ("x", "2")):
        (home / one).rename(home / other)
    for version, sha256 in zip((2, 1), hashes, strict=True):
        entry, loaded = store.load(f"tweets@{version}")
        assert entry.sha256 == loaded.sha256 == sha256


def test_files_that_change_while_they_are_read_are_read_again(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain folder has no card that would tell the config of one adapter from the weights of another."""
    plain = tmp_path / "store/plain"
    shutil.copytree(source(tmp_path, 2), plain)
    (plain / PARTS[2]).unlink()
    load = Adapter.load

    def slowly(folder: Path) -> Adapter:
        found = load(folder)
        if found.config.lora_alpha != 99:
            retrain(folder / WEIGHTS)
        return found

    monkeypatch.setattr(Adapter, "load", slowly)
    with pytest.raises(BeingWrittenError, match="changed while they were read"):
        store.resolve("plain")
    while True:
        try:
            entry, loaded = store.load("plain")
            break
        except BeingWrittenError:
            time.sleep(0.01)
    assert loaded.config.lora_alpha == 99
    assert entry.sha256 == loaded.sha256


def test_what_claims_to_be_there_already_is_put_again_if_it_is_not(store: FolderStore) -> None:
    rescale(weights(store, 1))
    assert put_once(store, adapter(1), "tweets").version == 2
    assert put_once(store, adapter(1), "tweets").version == 2


def test_a_broken_version_can_be_removed_and_is_not_listed(store: FolderStore) -> None:
    store.put(adapter(2), "tweets")
    rescale(weights(store, 2))
    with pytest.raises(AdapterError):
        store.resolve("tweets@2")
    assert [entry.ref for entry in store.list()] == ["tweets@1"]
    assert store.remove("tweets@2") == "tweets@2"
    assert store.put(adapter(3), "tweets").version == 3


def test_what_was_set_aside_comes_back_when_it_is_asked_anew(store: FolderStore) -> None:
    entry = store.put(adapter(2), "tweets")
    store.set_aside(entry, AdapterError("its answers are no numbers"))
    assert store.resolve("tweets").version == 1
    with pytest.raises(AdapterError, match="no numbers"):
        store.resolve("tweets@2")
    store.reconsider()
    assert store.resolve("tweets").version == 2
    store.set_aside(entry, AdapterError("its answers are no numbers"))
    rescale(weights(store, 2))
    with pytest.raises(AdapterError, match="content hash"):
        store.resolve("tweets@2")


# ------------------------------------------------------------------------------------------------------- a bucket


@pytest.mark.parametrize("damage", [rescale, truncate, exchange])
def test_a_bucket_is_believed_no_more_than_a_folder(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """Though a verified copy of what the card claims lies in the cache."""
    (tmp_path / "bucket").mkdir()

    def opened() -> FolderStore:
        return FolderStore(
            BucketFiles(pyarrow.fs.SubTreeFileSystem(str(tmp_path / "bucket"), pyarrow.fs.LocalFileSystem()), "all"),
            "s3://all",
        )

    for seed in (1, 2):
        opened().put(adapter(seed), "tweets")
    assert opened().load("tweets")[1].sha256 == adapter(2).sha256
    damage(tmp_path / "bucket/all/tweets/2" / WEIGHTS)
    for store in (opened(), opened()):
        assert store.load("tweets")[1].sha256 == adapter(1).sha256
        with pytest.raises(AdapterError):
            store.load("tweets@2")


def test_a_bucket_s_files_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bucket").mkdir()
    system = pyarrow.fs.SubTreeFileSystem(str(tmp_path / "bucket"), pyarrow.fs.LocalFileSystem())
    FolderStore(BucketFiles(system, "all"), "s3://all").put(adapter(1), "tweets")
    file = tmp_path / "bucket/all/tweets/1" / WEIGHTS
    for part in file.parent.iterdir():
        os.utime(part, (1e9, 1e9))
    fetches: list[str] = []
    fetch = BucketFiles.fetch

    def counted(self: BucketFiles, name: str, prefix: str, folder: Path) -> None:
        fetches.append(name)
        fetch(self, name, prefix, folder)

    monkeypatch.setattr(BucketFiles, "fetch", counted)
    for _ in range(3):
        entry, loaded = FolderStore(BucketFiles(system, "all"), "s3://all").load("tweets")
        assert entry.sha256 == loaded.sha256 == adapter(1).sha256
    assert len(fetches) == 1
    FolderStore(BucketFiles(system, "all"), "s3://other").load("tweets")
    assert len(fetches) == 2


# ------------------------------------------------------------------------------------------------------- the store away


def vanish(root: Path) -> None:
    root.rename(root.with_name("gone"))


def unmount(root: Path) -> None:
    vanish(root)
    root.mkdir()


@pytest.mark.parametrize("leave", [vanish, unmount])
def test_a_store_that_is_away_is_not_empty(leave: Callable[[Path], None], store: FolderStore, tmp_path: Path) -> None:
    root = tmp_path / "store"
    entry = store.resolve("tweets")
    leave(root)
    for ask in (store.resolve, store.recall, store.load):
        for ref in ("tweets", "tweets@1", "other"):
            with pytest.raises(StoreAwayError, match="is away"):
                ask(ref)
    with pytest.raises(StoreAwayError):
        store.list()
    if root.exists():
        root.rmdir()
    (tmp_path / "gone").rename(root)
    assert store.resolve("tweets") == entry
    with pytest.raises(AdapterNotFoundError):
        store.resolve("other")
    shutil.rmtree(root / "tweets")
    (root / "kept").mkdir()
    with pytest.raises(AdapterNotFoundError):
        store.resolve("tweets")


def test_a_store_that_is_expected_is_away_before_it_was_seen(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "nowhere"))
    assert isinstance(store, FolderStore)
    with pytest.raises(AdapterNotFoundError):
        store.resolve("tweets")
    store.expect()
    with pytest.raises(StoreAwayError, match="is away"):
        store.resolve("tweets")
    with pytest.raises(StoreAwayError, match="is away"):  # what is written beside a mount is lost when it comes back
        store.put(adapter(1), "tweets")
    (tmp_path / "nowhere").mkdir()
    assert store.put(adapter(1), "tweets").version == 1


def test_a_store_that_leaves_while_it_is_read_breaks_no_version(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Adapter.load

    def late(folder: Path) -> Adapter:
        vanish(tmp_path / "store")
        return load(folder)

    fresh = FolderStore(store._files, store.uri)
    monkeypatch.setattr(Adapter, "load", late)
    with pytest.raises(StoreAwayError):
        fresh.resolve("tweets")
    monkeypatch.setattr(Adapter, "load", load)
    (tmp_path / "gone").rename(tmp_path / "store")
    assert fresh.resolve("tweets").sha256 == adapter(1).sha256


@pytest.mark.parametrize("ask", ["resolve", "recall", "list"])
def test_a_name_that_goes_between_two_looks_and_comes_back_is_there(
    ask: str, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.alias("tweets", "canary", 1)
    (tmp_path / "store/another").mkdir()  # a store without anything would be taken for one that is away
    home, read, scan = tmp_path / "store/tweets", LocalFiles.read, LocalFiles.scan
    left = {"read": 1, "scan": 1}

    def late(self: LocalFiles, name: str, path: str, start: int = 0, size: int | None = None) -> bytes:
        if path != "aliases.json" or not left["read"]:
            return read(self, name, path, start, size)
        left["read"] -= 1
        home.rename(tmp_path / "away")  # it was listed with its aliases, and goes before they are read
        try:
            return read(self, name, path, start, size)
        finally:
            (tmp_path / "away").rename(home)

    def early(self: LocalFiles, name: str) -> Mapping[str, Stat]:
        if not left["scan"]:
            return scan(self, name)
        left["scan"] -= 1
        home.rename(tmp_path / "away")  # it is not there, and is before it is looked for among the other names
        try:
            return scan(self, name)
        finally:
            (tmp_path / "away").rename(home)

    monkeypatch.setattr(LocalFiles, "read", late)
    if ask == "list":
        assert [entry.aliases for entry in store.list()] == [("canary",)]
    elif ask == "recall":
        entry = store.recall("tweets@canary")
        assert entry is not None
        assert entry.aliases == ("canary",)
    else:
        monkeypatch.setattr(LocalFiles, "scan", early)
        assert store.resolve("tweets@canary").aliases == ("canary",)
        assert left["scan"] == 0
    assert left["read"] == 0


def test_aliases_that_can_never_be_read_are_said(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.alias("tweets", "canary", 1)
    read = LocalFiles.read

    def gone(self: LocalFiles, name: str, path: str, start: int = 0, size: int | None = None) -> bytes:
        if path == "aliases.json":
            raise FileNotFoundError(2, "No such file", path)
        return read(self, name, path, start, size)

    monkeypatch.setattr(LocalFiles, "read", gone)
    with pytest.raises(AdapterError, match=r"tweets/aliases\.json was there and is gone"):
        store.resolve("tweets@canary")


def test_readers_beside_a_writer_see_one_adapter_or_the_other(store: FolderStore, tmp_path: Path) -> None:
    """A version's folder is exchanged again and again under readers: a hash always goes with its own tensors."""
    spare = tmp_path / "store/tweets/spare"
    adapter(2).save(spare)
    home, ended = tmp_path / "store/tweets/1", threading.Event()
    wanted = {adapter(seed).sha256: adapter(seed).tensors for seed in (1, 2)}
    seen: list[str] = []

    def swap() -> None:
        while not ended.is_set():
            home.rename(home.with_name("tmp"))
            spare.rename(home)
            home.with_name("tmp").rename(spare)
            time.sleep(0.002)

    writer = threading.Thread(target=swap)
    writer.start()
    try:
        while len(seen) < 100:
            try:
                entry, loaded = store.load("tweets")
            except (AdapterError, AdapterNotFoundError):
                continue
            assert all(torch.equal(loaded.tensors[key], value) for key, value in wanted[loaded.sha256].items())
            if loaded.sha256 == entry.sha256:
                seen.append(entry.sha256)
    finally:
        ended.set()
        writer.join()
    assert set(seen) == set(wanted)
