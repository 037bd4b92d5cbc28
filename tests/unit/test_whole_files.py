"""The files that a search goes on from, while they are written: kills, a full disk, sources that are cut."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow.fs import copy_files
from ray.train import Checkpoint
from ray.train._internal.storage import _download_from_fs_path, _upload_to_fs_path
from ray.tune.execution.experiment_state import _find_newest_experiment_checkpoint

from ray_lora.search.whole_files import in_place, tidy, whole_files

STATE = "experiment_state-2026-11-29_10-00-00.json"
OLD, NEW = {"trials": ["old"]}, {"trials": ["new"] * 100_000}

_KILLED = """
import sys
from ray_lora.search.whole_files import whole_files
with whole_files().open_output_stream(sys.argv[1]) as file:
    file.write(b'{"trials": ["new"')
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
"""
_FULL = """
import resource, sys
from ray.train._internal.storage import _upload_to_fs_path
from ray_lora.search.whole_files import whole_files
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    _upload_to_fs_path(sys.argv[1], whole_files(), sys.argv[2])
except OSError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A search's folder with an older state, as Ray copies it there."""
    _staged(tmp_path, OLD)
    _upload_to_fs_path(str(tmp_path / "staged"), whole_files(), str(tmp_path / "tune"))
    return tmp_path / "tune"


def _staged(folder: Path, state: object) -> None:
    (folder / "staged").mkdir(exist_ok=True)
    (folder / "staged" / STATE).write_text(json.dumps(state))
    (folder / "staged/search_gen_state-1.json").write_bytes(pickle.dumps(state))


def test_a_copy_is_in_place_when_it_is_whole(kept: Path, tmp_path: Path) -> None:
    _staged(tmp_path, NEW)
    files = pickle.loads(pickle.dumps(whole_files()))  # Tune sends it to the trials' processes
    _upload_to_fs_path(str(tmp_path / "staged"), files, str(kept))
    assert json.loads((kept / STATE).read_text()) == NEW
    assert pickle.loads((kept / "search_gen_state-1.json").read_bytes()) == NEW
    assert _find_newest_experiment_checkpoint(str(kept), files) == str(kept / STATE)
    _download_from_fs_path(files, str(kept), str(tmp_path / "back"))
    assert {path.name for path in (tmp_path / "back").iterdir()} == {path.name for path in kept.iterdir()}
    assert (tmp_path / "back" / STATE).read_bytes() == (kept / STATE).read_bytes()


def test_a_kill_in_the_middle_of_a_write_leaves_the_older_state(kept: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(kept / STATE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writing:
        assert writing.stdout is not None
        assert writing.stdout.readline() == b"half\n"
        writing.kill()
    assert json.loads((kept / STATE).read_text()) == OLD
    assert _find_newest_experiment_checkpoint(str(kept), whole_files()) == str(kept / STATE)
    assert len(list(kept.iterdir())) == 3  # the half is beside it
    tidy(kept)
    assert {path.name for path in kept.iterdir()} == {STATE, "search_gen_state-1.json"}


def test_a_full_disk_leaves_the_older_state_and_nothing_beside_it(kept: Path, tmp_path: Path) -> None:
    _staged(tmp_path, NEW)
    full = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / "staged"), str(kept)], capture_output=True, text=True
    )
    assert full.returncode == 1
    assert "File too large" in full.stderr
    assert {path.name for path in kept.iterdir()} == {STATE, "search_gen_state-1.json"}
    assert json.loads((kept / STATE).read_text()) == OLD
    assert pickle.loads((kept / "search_gen_state-1.json").read_bytes()) == OLD


def test_a_copy_of_what_is_being_written_anew_is_left_out(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "staged" / STATE).write_text(json.dumps(NEW)[:-3])
    copy_files(str(tmp_path / "staged"), str(kept), destination_filesystem=whole_files())
    assert json.loads((kept / STATE).read_text()) == OLD
    assert {path.name for path in kept.iterdir()} == {STATE, "search_gen_state-1.json"}


def test_two_readers_of_a_checkpoint_read_it_where_it_lies(kept: Path) -> None:
    """Ray's copy is shared by the readers of a machine; the first to end took it from the second."""
    first, second = (pickle.loads(pickle.dumps(Checkpoint(str(kept), whole_files()))) for _ in range(2))
    with in_place(first).as_directory() as one:
        with in_place(second).as_directory() as other:
            assert one == other == str(kept)
        assert json.loads((Path(one) / STATE).read_text()) == OLD
    elsewhere = Checkpoint(str(kept))
    assert in_place(elsewhere) is elsewhere
