"""A store in MLflow's model registry: name = registered model, version = its version, aliases = its aliases.

A version's artifact is a plain PEFT folder with an `MLmodel` file beside it, so that `mlflow.pyfunc.load_model` works;
no pickle anywhere. Its tags say what a person looks for; one of them, `ray_lora`, holds the entry for `list`. What was
seen once is kept in the cache: while MLflow is away, known refs resolve as they last did.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ray_lora.bounds import public
from ray_lora.errors import AdapterError
from ray_lora.store.cache import forget_copies, local_copy
from ray_lora.store.files import PARTS, WEIGHTS
from ray_lora.store.known import TRAFFIC, Known, Notes, entry_of, tags_of
from ray_lora.store.left_out import LeftOut
from ray_lora.store.mlflow_client import (
    connect,
    ensure_model,
    forget_experiment,
    forget_model,
    own_run,
    own_setting,
    write_mlmodel,
)
from ray_lora.store.mlflow_line import Line, address, answering, require
from ray_lora.store.mlflow_rows import PAGE, known_of, read_entries
from ray_lora.store.refs import (
    CHAMPION,
    check_alias,
    check_name,
    choose,
    is_person,
    only_version,
    parse_ref,
    unknown,
)
from ray_lora.store.steer import Change, Pointers, check_unused, steps
from ray_lora.store.store import Cleared, Entry, StoreAwayError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

    from ray_lora.adapters.adapter import Adapter


class MlflowStore:
    """See `Store`. Safe to use from several threads."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.uri = "mlflow"
        self.tracking_uri = address(tracking_uri or own_setting())
        self._client: MlflowClient | None = None
        self._left_out = LeftOut()
        self._known: dict[str, Known] = {}
        self._aside: dict[tuple[str, int], AdapterError] = {}
        self._notes = Notes(self.tracking_uri)
        self._line = Line(self.tracking_uri)

    def put(
        self,
        adapter: Adapter,
        name: str,
        aliases: Sequence[str] = (),
        *,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Entry:
        """See `Store.put`. The version belongs to the run `run_id`, else to a run of its own; `tags` come on top."""
        check_name(name)
        for alias in aliases:
            check_alias(alias)
        client = self._connected()
        with answering(self.tracking_uri), tempfile.TemporaryDirectory(prefix="ray-lora-") as temporary:
            run_id = run_id or own_run(client, name)
            folder = Path(temporary) / "adapter"
            path = f"registered/{name}-{adapter.save(folder)[:12]}"
            write_mlmodel(folder, run_id, adapter.card.base)
            client.log_artifacts(run_id, str(folder), path)
            entry = entry_of(adapter, name, (folder / WEIGHTS).stat().st_size)
            source = f"{client.get_run(run_id).info.artifact_uri.rstrip('/')}/{path}"
            ensure_model(client, name)
            told = {**tags_of(adapter, entry), **(tags or {})}
            made = client.create_model_version(name, source, run_id, tags=told, await_creation_for=0)
            for alias in aliases:
                client.set_registered_model_alias(name, alias, str(made.version))
        return self.resolve(f"{name}@{made.version}")

    def resolve(self, ref: str) -> Entry:
        """See `Store.resolve`."""
        known = self._look(ref)
        name, alias, version = parse_ref(ref)
        held = known.versions
        newest = alias is None and version is None and CHAMPION not in known.aliases
        if newest:
            held = {number: entry for number, entry in held.items() if (name, number) not in self._aside} or held
        entry = known.entry(choose(ref, held, known.aliases))
        if (why := self._aside.get((name, entry.version))) is not None:
            raise why.with_traceback(None)
        return replace(entry, as_newest=newest)

    def set_aside(self, entry: Entry, why: AdapterError) -> None:
        """See `Store.set_aside`."""
        self._aside[entry.name, entry.version] = why

    def reconsider(self) -> None:
        """See `Store.reconsider`."""
        self._aside = {}

    def get(self, ref: str) -> tuple[Entry, Path]:
        """See `Store.get`. Always the cache's copy, checked; MLflow is asked for its bytes only the first time."""
        entry, folder, _ = self._copy(ref)
        return entry, folder

    def load(self, ref: str) -> tuple[Entry, Adapter]:
        """See `Store.load`. From the cache, as `get`."""
        entry, _, adapter = self._copy(ref)
        return entry, adapter

    def names(self) -> list[str]:
        """See `Store.names`."""
        return sorted({entry.name for entry in self.list()})

    def list(self, name: str | None = None, people: bool = True) -> list[Entry]:
        """See `Store.list`."""
        try:
            self._connected()
            found = self._line.ask(self._read_all if name is None else lambda: self._read_one(name))
            others = {} if name is None else {held: known for held, known in self._known.items() if held != name}
            before, self._known = self._known, others | found
            for held, known in found.items():
                if before.get(held) != known:
                    self._notes.keep(held, known)
        except StoreAwayError as error:
            self._line.say_away(error)
            self._known = {**self._notes.recall(), **self._known}
        return [
            known.entry(version)
            for held, known in sorted(self._known.items())
            if name in (None, held) and (people or not is_person(held))
            for version in sorted(known.versions)
        ]

    def alias(self, name: str, alias: str, version: int | None) -> None:
        """See `Store.alias`."""
        check_alias(alias)
        client = self._connected()
        self.resolve(f"{name}@{version}" if version is not None else f"{name}@{alias}")
        with answering(self.tracking_uri):
            if version is None:
                client.delete_registered_model_alias(name, alias)
            else:
                client.set_registered_model_alias(name, alias, str(version))

    def remove(self, ref: str) -> str:
        """See `Store.remove`. MLflow never gives a version's number away again."""
        client = self._connected()
        name, known = parse_ref(ref)[0], self._look(ref)
        only_version(ref, known.versions)
        version = choose(ref, known.versions, known.aliases)
        check_unused(Pointers(name, known.versions, known.aliases, known.traffic), version)
        with answering(self.tracking_uri):
            client.delete_model_version(name, str(version))
        return f"{name}@{version}"

    def crowded(self, most: int) -> Sequence[str]:
        """See `Store.crowded`. One look at the whole registry."""
        counts = Counter(entry.name for entry in self.list())
        return sorted(name for name, count in counts.items() if count > most)

    def forget(self, name: str) -> Sequence[Cleared]:
        """See `Store.forget`. The experiment that its versions' runs are in is the name's own, and goes with them."""
        check_name(name)
        client = self._connected()
        known = self._line.ask(lambda: self._read(name))
        contents = {entry.sha256 for entry in known.versions.values()}
        where = f"mlflow at {public(self.tracking_uri)}"
        with answering(self.tracking_uri):
            forget_model(client, name)
            runs = forget_experiment(client, name)
        self._known.pop(name, None)
        self._aside = {key: why for key, why in self._aside.items() if key[0] != name}
        self._notes.forget(name)
        copies = forget_copies(contents)
        count = len(known.versions)
        done = [Cleared(f"registry of {where}", f"{name}, {count} versions" if count else ""), *runs]
        return done + ([Cleared("copies on this machine", f"{copies} adapters")] if copies else [])

    def point(self, name: str, change: Change) -> Pointers:
        """See `Store.point`. The registry has no locks: of two changes at once the last one wins."""
        client = self._connected()
        known = self._look(name)
        held = Pointers(name, known.versions, known.aliases, known.traffic)
        with answering(self.tracking_uri):
            for step in steps(held, change(held)):
                if step.traffic != held.traffic:
                    client.set_registered_model_tag(name, TRAFFIC, step.traffic.dump())
                for alias, version in step.aliases.items():
                    if held.aliases.get(alias) != version:
                        client.set_registered_model_alias(name, alias, str(version))
                held = step
        return held

    # ---------------------------------------------------------------------------------- what the registry says

    def _connected(self) -> MlflowClient:
        require(self.tracking_uri)
        if self._client is None:
            self._client = connect(self.tracking_uri)
        return self._client

    def _look(self, ref: str) -> Known:
        """What is known of the name in a ref: from the registry, or while that is away what it said last."""
        name = parse_ref(ref)[0]
        try:
            self._connected()
            known = self._line.ask(lambda: self._read(name))
        except StoreAwayError as error:
            self._line.say_away(error)
            if name not in self._known:
                self._known = {**self._notes.recall(), **self._known}
            if name not in self._known:
                raise StoreAwayError(f"{error}; {name!r} was not seen on this machine before") from None
            return self._known[name]
        if not known.versions:
            self._known.pop(name, None)
            raise unknown(ref, sorted(self._line.ask(self._read_all)), f"mlflow at {public(self.tracking_uri)}")
        if self._known.get(name) != known:
            self._known[name] = known
            self._notes.keep(name, known)
        return known

    def _read(self, name: str) -> Known:
        client = self._connected()
        try:
            model = client.get_registered_model(name)
        except Exception as error:
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                return Known({}, {})
            raise
        versions = read_entries(client, f"name = '{name}'", self._left_out).get(name, {})
        return known_of(model, versions)

    def _read_one(self, name: str) -> dict[str, Known]:
        """A name, if the registry has it."""
        try:
            known = self._read(name)
        except AdapterError as error:
            self._left_out(error)
            return {}
        return {name: known} if known.versions else {}

    def _read_all(self) -> dict[str, Known]:
        client = self._connected()
        models: dict[str, RegisteredModel] = {}
        token = None
        while True:
            page = client.search_registered_models(max_results=PAGE, page_token=token)
            models |= {model.name: model for model in page}
            if not (token := page.token):
                break
        found = {}
        for name, versions in read_entries(client, "", self._left_out).items():
            try:
                found[name] = known_of(models[name], versions)
            except (AdapterError, KeyError) as error:
                self._left_out(error)
        return found

    def _copy(self, ref: str) -> tuple[Entry, Path, Adapter]:
        """The entry of a ref, the cache's copy of it, and what is in it."""
        entry = self.resolve(ref)
        return entry, *local_copy(entry.sha256, lambda into: self._fetch(entry, into))

    def _fetch(self, entry: Entry, into: Path) -> None:
        """Copy the adapter's files, and nothing else of the artifact, into a folder."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        client = self._connected()
        source = client.get_model_version_download_uri(entry.name, str(entry.version))
        artifacts = get_artifact_repository(source, tracking_uri=self.tracking_uri)
        try:
            held = {Path(info.path).name for info in artifacts.list_artifacts()}
            for part in PARTS:
                if part in held:
                    artifacts.download_artifacts(part, str(into))
        except Exception as error:
            raise StoreAwayError(f"{entry.ref} cannot be fetched from {source}: {error}") from None
