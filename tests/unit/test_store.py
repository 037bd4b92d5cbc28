"""Stores keep what they were given, under names that mean one thing, and hand out nothing they cannot vouch for."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import torch

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.errors import AdapterError, AdapterNotFoundError, RecipeError
from ray_lora.recipe import LoraSpec
from ray_lora.store import Store, StoreAwayError, open_store, parse_ref
from ray_lora.store.bucket import BucketFiles
from ray_lora.store.cache import ReadAhead
from ray_lora.store.folder import FolderStore
from ray_lora.store.local import LocalFiles
from ray_lora.store.mlflow_store import MlflowStore
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.mlflow_world import MLFLOW_WARNINGS, database

PEFT_WARNINGS = ("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",)  # PEFT asks transformers for it
pytestmark = [pytest.mark.filterwarnings(known) for known in (*MLFLOW_WARNINGS, *PEFT_WARNINGS)]


def adapter(seed: int = 0, r: int = 2) -> Adapter:
    """A small adapter whose content follows from the seed."""
    chance = torch.Generator().manual_seed(seed)
    layers = {
        f"bert.encoder.layer.{layer}.attention.self.query": LowRank(
            torch.randn(r, 8, generator=chance), torch.randn(8, r, generator=chance)
        )
        for layer in range(2)
    }
    head = {"classifier.weight": torch.randn(2, 8, generator=chance)}
    card = Card(
        task=TextClassificationSpec(labels=("no", "yes")),
        base="tiny",
        base_fingerprint="f" * 64,
        metrics={"accuracy": 0.5 + seed / 100},
    )
    return Adapter(LoraSpec(r=r), layers, head, card, "SEQ_CLS", ("classifier",))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bucket(root: Path) -> FolderStore:
    """A store whose file system renames nothing and locks nothing, as a bucket's."""
    root.mkdir(exist_ok=True)
    return FolderStore(
        BucketFiles(pyarrow.fs.SubTreeFileSystem(str(root), pyarrow.fs.LocalFileSystem()), "all"), "s3://all"
    )


def place_of(store: Store, tmp_path: Path) -> Path:
    return tmp_path / ("bucket/all" if store.uri == "s3://all" else "store")


@pytest.fixture(params=["folder", "bucket"])
def files_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store")) if request.param == "folder" else bucket(tmp_path / "bucket")


@pytest.fixture(params=["folder", "bucket", "mlflow"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "folder":
        yield open_store(str(tmp_path / "store"))
    elif request.param == "bucket":
        yield bucket(tmp_path / "bucket")
    else:
        yield MlflowStore(database(tmp_path))


@pytest.fixture
def mlflow_store(tmp_path: Path) -> MlflowStore:
    return MlflowStore(database(tmp_path))


# ------------------------------------------------------------------------------------------------------------- refs


@pytest.mark.parametrize(
    ("ref", "parsed"),
    [
        ("tweets", ("tweets", None, None)),
        ("tweets@canary", ("tweets", "canary", None)),
        ("tweets@3", ("tweets", None, 3)),
        ("a.b-c_1@12", ("a.b-c_1", None, 12)),
    ],
)
def test_refs(ref: str, parsed: tuple[str, str | None, int | None]) -> None:
    assert parse_ref(ref) == parsed


NO_REFS = """@ a@ @3 a@b@c a@0 a@-1 a@1.5 .. ../a a/b /a a\\b .a a@../b a@latest a@v3 a@٣ %2e%2e""".split()
NO_REFS += ["", "a b", "a\0", "a\n", "a" * 101, "a@" + "9" * 5000]


@pytest.mark.parametrize("ref", NO_REFS)
def test_what_is_not_a_ref(ref: str) -> None:
    with pytest.raises(AdapterNotFoundError, match="is not a ref"):
        parse_ref(ref)


def test_a_store_takes_only_refs(store: Store) -> None:
    for use in (store.resolve, store.get, store.remove):
        with pytest.raises(AdapterNotFoundError, match="is not a ref"):
            use("../tweets")


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a", ".hidden", "a@1", "a:b", "-a", "a" * 101])
def test_names_that_cannot_be_put(name: str, files_store: Store, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="cannot name an adapter"):
        files_store.put(adapter(), name)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("alias", ["3", "latest", "v1", "", "a/b", "@"])
def test_words_that_cannot_be_aliases(alias: str, files_store: Store) -> None:
    with pytest.raises(AdapterError, match="cannot be an alias"):
        files_store.put(adapter(), "a", [alias])
    assert files_store.list() == []


# ------------------------------------------------------------------------------------- what all three kinds promise


def test_put_and_get(store: Store) -> None:
    given = adapter(seed=3)
    entry = store.put(given, "tweets", ["champion", "canary"])
    assert (entry.name, entry.version, entry.aliases) == ("tweets", 1, ("canary", "champion"))
    assert entry.sha256 == given.sha256
    assert (entry.task, entry.base, entry.base_fingerprint) == (given.card.task, "tiny", "f" * 64)
    assert entry.metrics == {"accuracy": 0.53}
    assert entry.num_parameters == given.num_parameters
    found, folder = store.get("tweets")
    assert found == entry == store.resolve("tweets@1")
    assert entry.bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert Adapter.load(folder).sha256 == given.sha256
    assert store.list() == [entry]


def test_a_bare_name_is_the_champion_or_else_the_newest(store: Store) -> None:
    for seed in range(3):
        store.put(adapter(seed), "tweets")
    assert store.resolve("tweets").version == 3
    store.alias("tweets", "champion", 2)
    assert store.resolve("tweets").version == 2
    assert store.resolve("tweets").aliases == ("champion",)
    store.alias("tweets", "champion", 1)
    assert [entry.aliases for entry in store.list()] == [("champion",), (), ()]
    store.alias("tweets", "champion", None)
    assert store.resolve("tweets").version == 3


def test_numbers_are_never_used_again(store: Store) -> None:
    for seed in range(3):
        store.put(adapter(seed), "tweets", ["champion"])
    store.remove("tweets@3")
    assert store.resolve("tweets").version == 2  # its champion is gone with it
    assert store.put(adapter(9), "tweets").version == 4
    with pytest.raises(AdapterNotFoundError, match="'tweets' has no version 3; its versions: 1, 2, 4"):
        store.get("tweets@3")


def test_a_bare_name_does_not_remove_one_of_several(store: Store) -> None:
    store.put(adapter(0), "tweets")
    store.put(adapter(1), "tweets")
    with pytest.raises(AdapterError, match="versions 1, 2; name the one to remove, for example tweets@1"):
        store.remove("tweets")
    store.remove("tweets@1")
    store.remove("tweets")
    assert store.list() == []


def test_unknown_refs_name_the_nearest(store: Store) -> None:
    with pytest.raises(AdapterNotFoundError, match="holds no adapters"):
        store.resolve("tweets")
    store.put(adapter(), "tweets", ["champion"])
    with pytest.raises(AdapterNotFoundError, match="did you mean 'tweets'"):
        store.get("twets")
    with pytest.raises(AdapterNotFoundError, match="did you mean 'champion'"):
        store.get("tweets@chmpion")
    with pytest.raises(AdapterNotFoundError, match="no version 2; its versions: 1"):
        store.alias("tweets", "canary", 2)
    with pytest.raises(AdapterNotFoundError, match="no alias 'canary'"):
        store.alias("tweets", "canary", None)


def test_racing_writers_share_no_version(store: Store) -> None:
    count = 6
    locked = store.uri != "s3://all"  # a bucket has no locks: of two writers of aliases the last one wins
    start = threading.Barrier(count)
    made: dict[int, int] = {}

    def put(seed: int) -> None:
        start.wait()
        made[seed] = store.put(adapter(seed), "tweets", [f"by-{seed}"] if locked else []).version

    threads = [threading.Thread(target=put, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(range(count))
    assert len(set(made.values())) == count
    for seed, version in made.items():
        assert store.get(f"tweets@{version}")[0].sha256 == adapter(seed).sha256
    if locked:
        assert {seed: store.resolve(f"tweets@by-{seed}").version for seed in range(count)} == made


# ------------------------------------------------------------------------------------------------------ plain PEFT


@pytest.fixture
def plain_peft(tmp_path: Path) -> Path:
    """A folder that PEFT itself wrote."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(
            BertForSequenceClassification(config), LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"])
        )
    model.save_pretrained(tmp_path / "peft")
    return tmp_path / "peft"


def test_a_folder_that_plain_peft_wrote_is_version_one(files_store: Store, plain_peft: Path, tmp_path: Path) -> None:
    place = place_of(files_store, tmp_path)
    shutil.copytree(plain_peft, place / "movies")
    (listed,) = files_store.list()
    assert (listed.name, listed.version, listed.task, listed.sha256) == ("movies", 1, None, "")
    assert listed.num_parameters == Adapter.load(plain_peft).num_parameters > 0
    entry, folder = files_store.get("movies")
    assert entry.sha256 == Adapter.load(plain_peft).sha256 == Adapter.load(folder).sha256
    assert files_store.resolve("movies@1") == entry
    assert files_store.list() == [entry]  # now that it was read, its hash is known
    assert files_store.put(adapter(), "movies").version == 2
    assert [(e.name, e.version) for e in files_store.list()] == [("movies", 1), ("movies", 2)]
    files_store.remove("movies@1")
    assert [(e.name, e.version) for e in files_store.list()] == [("movies", 2)]


def test_a_plain_folder_is_read_once_for_its_hash_and_its_tensors(
    plain_peft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(plain_peft, tmp_path / "store" / "movies")
    store, load, reads = open_store(str(tmp_path / "store")), Adapter.load, []

    def counted(folder: Path) -> Adapter:
        reads.append(folder)
        return load(folder)

    monkeypatch.setattr(Adapter, "load", counted)
    entry = store.resolve("movies")
    found, held = store.load("movies")
    assert (found, held.sha256, len(reads)) == (entry, entry.sha256, 1)
    assert store.load("movies")[1].sha256 == entry.sha256
    assert len(reads) == 2  # it was kept for one only


def test_what_is_loaded_is_what_lies_there_now(plain_peft: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain_peft, tmp_path / "store" / "movies"))
    store = open_store(str(tmp_path / "store"))
    before = store.resolve("movies")
    spoil(folder / "adapter_model.safetensors")
    entry, held = store.load("movies")
    assert held.sha256 == entry.sha256 == Adapter.load(folder).sha256 != before.sha256


def test_what_was_read_ahead_has_a_limit() -> None:
    ahead = ReadAhead(most=20)
    for version in (1, 2, 3):
        ahead.keep("tweets", version, adapter(version), size=10)
    assert ahead.take("tweets", 1, adapter(1).sha256) is None
    assert ahead.take("tweets", 2, adapter(3).sha256) is None  # of other content than is asked for
    assert ahead.take("tweets", 3, adapter(3).sha256) is not None
    forgetful = ReadAhead(within_s=0)
    for version in (1, 2):
        forgetful.keep("tweets", version, adapter(version), size=10)
    assert forgetful.take("tweets", 1, adapter(1).sha256) is None  # nobody took it in time
    assert forgetful.take("tweets", 2, adapter(2).sha256) is not None


def test_other_content_in_a_plain_folder_is_another_adapter(plain_peft: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    store = open_store(str(tmp_path / "store"))
    folder = Path(shutil.copytree(plain_peft, tmp_path / "store" / "movies"))
    before = store.resolve("movies")
    weights = folder / "adapter_model.safetensors"
    tensors = {key: tensor + 1 for key, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    assert store.resolve("movies").sha256 != before.sha256
    assert store.get("movies")[0] == store.resolve("movies")


# --------------------------------------------------------------------------------------- what must not be handed out


def spoil(path: Path) -> None:
    """Change one value of the weights, leaving a whole safetensors file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x01
    path.write_bytes(data)


def test_changed_content_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put(adapter(0), "tweets")
    store.put(adapter(1), "movies")
    spoil(tmp_path / "store/tweets/1/adapter_model.safetensors")
    with pytest.raises(AdapterError, match="content hash"):
        store.get("tweets")
    assert store.get("movies")[0].sha256 == adapter(1).sha256


def test_changed_content_in_a_bucket_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    bucket(tmp_path / "bucket").put(adapter(), "tweets")
    shutil.rmtree(cache)
    store = bucket(tmp_path / "bucket")
    spoil(tmp_path / "bucket/all/tweets/1/adapter_model.safetensors")
    with pytest.raises(AdapterError, match="content hash"):
        store.get("tweets")
    assert list((cache / "adapters").iterdir()) == []


@pytest.mark.parametrize("damage", ["changed", "torn", "gone"])
def test_a_spoilt_copy_in_the_cache_is_fetched_again(damage: str, tmp_path: Path, mlflow_store: MlflowStore) -> None:
    for store in (bucket(tmp_path / "bucket"), mlflow_store):
        entry = store.put(adapter(), "tweets")
        folder = store.get("tweets")[1]
        weights = folder / "adapter_model.safetensors"
        if damage == "changed":
            spoil(weights)
        elif damage == "torn":
            weights.write_bytes(weights.read_bytes()[:100])
        else:
            weights.unlink()
        assert Adapter.load(store.get("tweets")[1]).sha256 == entry.sha256


@pytest.mark.parametrize("claimed", ["../../../etc", "0" * 63, "A" * 64, "x"])
def test_a_card_cannot_choose_a_path(claimed: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put(adapter(), "tweets")
    card = tmp_path / "store/tweets/1/ray_lora.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": claimed}))
    with pytest.raises(AdapterError, match="not a content hash"):
        store.get("tweets")


def test_links_out_of_the_store_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path / "store"))
    adapter().save(tmp_path / "outside")
    good = store.put(adapter(1), "good")
    for name, link in (("whole", "whole"), ("version", "version/1"), ("file", "file/1/adapter_model.safetensors")):
        place = tmp_path / "store" / link
        place.parent.mkdir(parents=True, exist_ok=True)
        if name == "file":
            for part in ("adapter_config.json", "ray_lora.json"):
                shutil.copy(tmp_path / "outside" / part, place.parent / part)
            place.symlink_to(tmp_path / "outside/adapter_model.safetensors")
        else:
            place.symlink_to(tmp_path / "outside")
        for use in (store.resolve, store.get, store.remove):
            with pytest.raises(AdapterError, match="link that leads out of the store"):
                use(name)
    with pytest.raises(AdapterError, match="link that leads out of the store"):
        store.put(adapter(), "whole")
    assert store.list() == [good]
    assert caplog.text.count("leads out of the store") == 3
    assert sorted(path.name for path in (tmp_path / "outside").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "ray_lora.json",
    ]


def test_links_inside_the_store_work(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    entry = store.put(adapter(), "tweets")
    (tmp_path / "store/same").symlink_to(tmp_path / "store/tweets")
    assert store.get("same@1")[0] == replace(entry, name="same")


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("adapter_model.safetensors"), "has no adapter_model.safetensors"),
        (write("adapter_model.safetensors", b""), "torn or not safetensors"),
        (write("adapter_model.safetensors", b"\xff" * 400), "torn or not safetensors"),
        (write("adapter_model.safetensors", b"\x80\x04K\x01."), "torn or not safetensors"),
        (write("ray_lora.json", b"{"), "ray_lora.json cannot be read"),
        (write("ray_lora.json", b"[]"), "holds a list"),
        (write("ray_lora.json", b'{"task": {"type": "no-such"}}'), "not a card of this library"),
        (write("ray_lora.json", b'{"metrics": 3}'), "not a card of this library"),
        (write("ray_lora.json", b"[" * 100_000), "ray_lora.json cannot be read"),
        (write("ray_lora.json", b" " * (5 * 2**20)), "has 5242880 bytes"),
    ],
)
def test_a_broken_adapter_is_named_and_left_out(
    damage: Callable[[Path], None], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(tmp_path / "store"))
    good = store.put(adapter(1), "good")
    store.put(adapter(), "tweets")
    damage(tmp_path / "store/tweets/1")
    with pytest.raises(AdapterError, match=message):
        open_store(str(tmp_path / "store")).get("tweets")
    with pytest.raises(AdapterError, match=message):
        store.resolve("tweets@1")
    with caplog.at_level(logging.WARNING):
        assert store.list() == [good]
    assert message in caplog.text


def test_a_pickled_adapter_is_refused_by_name(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    adapter().save(tmp_path / "store/tweets")
    weights = tmp_path / "store/tweets/adapter_model.safetensors"
    weights.rename(weights.with_name("adapter_model.bin"))
    with pytest.raises(AdapterError, match=r"adapter_model.bin is pickled and is never read"):
        store.get("tweets")


@pytest.mark.parametrize("text", ["{", "[]", '{"champion": "1"}', '{"champion": true}', '{"champion": null}'])
def test_broken_aliases_never_mean_another_version(text: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put(adapter(0), "tweets", ["champion"])
    store.put(adapter(1), "tweets")
    (tmp_path / "store/tweets/aliases.json").write_text(text)
    for ref in ("tweets", "tweets@champion"):
        with pytest.raises(AdapterError, match=r"aliases\.json"):
            store.resolve(ref)


def test_an_alias_whose_version_is_gone_is_an_error(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put(adapter(0), "tweets", ["champion"])
    store.put(adapter(1), "tweets")
    shutil.rmtree(tmp_path / "store/tweets/1")
    with pytest.raises(AdapterNotFoundError, match="points to version 1, which is gone; its versions: 2"):
        store.resolve("tweets")


# --------------------------------------------------------------------------------------------- seen live, and quick


def test_what_others_do_is_seen_at_the_next_call(files_store: Store, tmp_path: Path) -> None:
    place = place_of(files_store, tmp_path)
    assert files_store.list() == []
    adapter(0).save(place / "tweets/1")
    adapter(1).save(place / "tweets/2")
    assert files_store.resolve("tweets").version == 2
    (place / "tweets/aliases.json").write_text('{"champion": 1}')
    assert files_store.resolve("tweets").version == 1
    shutil.rmtree(place / "tweets/2")
    assert [entry.ref for entry in files_store.list()] == ["tweets@1"]


def test_what_is_known_is_recalled_and_what_changed_is_not(plain_peft: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    assert isinstance(store, FolderStore)
    assert store.recall("a") is None
    for seed in range(2):
        store.put(adapter(seed), "a")
    assert store.recall("a") == store.resolve("a")
    open_store(str(tmp_path / "store")).alias("a", "champion", 1)  # as another process would
    recalled = store.recall("a")
    assert recalled is not None
    assert (recalled.version, recalled.aliases) == (1, ("champion",))
    with pytest.raises(AdapterNotFoundError):
        store.recall("a@9")
    shutil.copytree(plain_peft, tmp_path / "store" / "plain")
    assert store.recall("plain") is None  # nobody has read what it holds
    assert store.resolve("plain") == store.recall("plain")
    (tmp_path / "store" / "plain" / "adapter_model.safetensors").touch()
    assert store.recall("plain") is None


def test_a_listing_reads_no_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "store"))
    for seed in range(3):
        store.put(adapter(seed), "tweets")
    reads: list[tuple[str, int]] = []
    read = LocalFiles.read

    def counted(self: LocalFiles, name: str, path: str, start: int = 0, size: int | None = None) -> bytes:
        data = read(self, name, path, start, size)
        reads.append((path.rpartition("/")[2], len(data)))
        return data

    monkeypatch.setattr(LocalFiles, "read", counted)
    fresh = open_store(str(tmp_path / "store"))
    assert len(fresh.list()) == 3
    header = (tmp_path / "store/tweets/1/adapter_model.safetensors").stat().st_size - adapter().num_parameters * 4
    assert sum(size for path, size in reads if path == "adapter_model.safetensors") == 3 * header
    reads.clear()
    assert len(fresh.list()) == 3
    assert reads == []  # nothing changed, nothing is read again


def test_a_listing_imports_no_torch(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put(adapter(), "tweets", ["champion"])
    code = (
        "import sys; from ray_lora.store import open_store; store = open_store(sys.argv[1]);"
        "assert [entry.ref for entry in store.list()] == ['tweets@1'];"
        "found = {'torch', 'transformers', 'mlflow', 'peft'} & set(sys.modules); sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr


def test_a_number_that_another_writer_claimed_in_a_bucket_is_his(tmp_path: Path) -> None:
    store = bucket(tmp_path / "bucket")
    (tmp_path / "bucket/all/tweets").mkdir(parents=True)
    claim = BucketFiles.write

    def other_claims_too(self: BucketFiles, name: str, path: str, data: bytes) -> None:
        claim(self, name, path, data)
        if path.startswith(".claims/1-"):
            claim(self, name, ".claims/1-another", b"")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(BucketFiles, "write", other_claims_too)
        assert store.put(adapter(), "tweets").version == 2
    assert store.put(adapter(), "tweets").version == 3
    assert {path.name.partition("-")[0] for path in (tmp_path / "bucket/all/tweets/.claims").iterdir()} == set("123")


def test_writers_who_met_in_a_bucket_and_both_gave_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bucket(tmp_path / "bucket")
    listings: list[Any] = [{}, {".claims/1-another": None}, {}]  # of put, of the claim, and after giving way
    scan = BucketFiles.scan
    monkeypatch.setattr(BucketFiles, "scan", lambda self, name: listings.pop(0) if listings else scan(self, name))
    assert store.put(adapter(), "tweets").version == 2


def test_a_half_written_version_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bucket(tmp_path / "bucket")
    write = BucketFiles.write

    def fail_at_config(self: BucketFiles, name: str, path: str, data: bytes) -> None:
        if path.endswith("adapter_config.json"):
            raise KeyboardInterrupt
        write(self, name, path, data)

    with monkeypatch.context() as patched:
        patched.setattr(BucketFiles, "write", fail_at_config)
        with pytest.raises(KeyboardInterrupt):
            store.put(adapter(), "tweets", ["champion"])
    assert store.list() == []
    assert not list((tmp_path / "bucket").rglob("*.safetensors"))
    assert store.put(adapter(), "tweets").version == 2


def test_a_failed_put_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "store"))

    def torn(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "copytree", torn)
    with pytest.raises(OSError, match="no space left"):
        store.put(adapter(), "tweets")
    assert store.list() == []
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


# ---------------------------------------------------------------------------------------------------------- MLflow


def test_the_registry_shows_people_what_they_look_for(tmp_path: Path, mlflow_store: MlflowStore) -> None:
    from mlflow import MlflowClient

    store = mlflow_store
    store.put(adapter(), "tweets", ["champion"], tags={"why": "best of 16"})
    version = MlflowClient(store.tracking_uri).get_model_version_by_alias("tweets", "champion")
    shown = {key: version.tags[key] for key in ("task", "base", "rank", "score", "metric", "why")}
    assert shown == {
        "task": "text-classification",
        "base": "tiny",
        "rank": "2",
        "score": "0.5",
        "metric": "accuracy",
        "why": "best of 16",
    }
    assert version.tags["base_fingerprint"] == "f" * 64
    assert version.tags["sha256"] == adapter().sha256
    assert json.loads(version.tags["labels"]) == ["no", "yes"]
    held = {path.name for path in Path(version.source.removeprefix("file://")).iterdir()}
    files = {"README.md", "MLmodel", "adapter_config.json", "adapter_model.safetensors", "ray_lora.json"}
    assert held == files | {"input_example.json", "serving_input_example.json"}


def test_other_models_of_the_registry_are_not_adapters(tmp_path: Path, mlflow_store: MlflowStore) -> None:
    from mlflow import MlflowClient

    store = mlflow_store
    client = MlflowClient(store.tracking_uri)
    client.create_registered_model("forest")
    client.create_model_version("forest", f"file://{tmp_path}/forest", tags={"sha256": "x"})
    entry = store.put(adapter(), "tweets")
    assert store.list() == [entry]
    with pytest.raises(AdapterNotFoundError, match="'forest' is not in the store"):
        store.resolve("forest")


def test_what_is_known_is_served_while_mlflow_is_away(
    tmp_path: Path, mlflow_store: MlflowStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = mlflow_store
    store.put(adapter(0), "tweets", ["champion"])
    store.put(adapter(1), "tweets")
    entry, folder = store.get("tweets")
    listed = store.list()

    def away(uri: str) -> None:
        raise StoreAwayError(f"MLflow at {uri} does not answer")

    with monkeypatch.context() as patched:
        patched.setattr("ray_lora.store.mlflow_store.require", away)
        for known in (store, MlflowStore(store.tracking_uri)):  # this process, and one that starts meanwhile
            caplog.clear()
            assert known.get("tweets") == (entry, folder)
            assert known.list() == listed
            with pytest.raises(AdapterNotFoundError, match="no version 3"):
                known.resolve("tweets@3")
            assert caplog.text.count("does not answer") == 1
            with pytest.raises(StoreAwayError, match="'movies' was not seen on this machine before"):
                known.get("movies")
            with pytest.raises(StoreAwayError):
                known.put(adapter(), "tweets")
            with pytest.raises(StoreAwayError):
                known.get("tweets@2")  # known by name, but its bytes were never fetched
    caplog.clear()
    assert store.resolve("tweets") == entry
    assert "answers again" in caplog.text


def test_a_hanging_registry_holds_nobody_up(
    mlflow_store: MlflowStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = mlflow_store
    entry = store.put(adapter(), "tweets")
    go_on = threading.Event()
    asked: list[str] = []
    monkeypatch.setattr("ray_lora.store.mlflow_line._PATIENCE_S", 0.05)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowStore, "_read", lambda self, name: asked.append(name) or go_on.wait())
        assert store.resolve("tweets") == entry
        assert store.resolve("tweets") == entry
    assert asked == ["tweets"]  # not a second time while the first question hangs
    go_on.set()
    while "answers again" not in caplog.text:
        assert store.resolve("tweets") == entry


# --------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("uri", ["", "ftp://host/x", "nosuch://x"])
def test_addresses_that_cannot_be_stores(uri: str) -> None:
    with pytest.raises(RecipeError, match="give a folder, s3://bucket/path"):
        open_store(uri)


def test_an_address_is_shown_without_its_secrets() -> None:
    store = open_store("s3://key:secret@bucket/path?region=us-east-1&endpoint_override=127.0.0.1:9")
    assert store.uri == "s3://key:***@bucket/path"
    with pytest.raises(RecipeError) as caught:
        open_store("mlflow", "ftp://me:secret@host/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["./mlruns", "file:///x", "/x/mlruns", "ftp://x"])
def test_addresses_that_mlflow_cannot_use(uri: str) -> None:
    with pytest.raises(RecipeError, match=r"sqlite:///mlflow\.db"):
        open_store("mlflow", uri)
