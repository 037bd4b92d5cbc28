"""One thread, no hub, quiet Ray; and a tiny BERT base with random weights, saved as a folder."""

from __future__ import annotations

import os

os.environ |= {  # before torch, transformers and Ray are imported, here and in the workers they start
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "1",
    "RAY_prestart_worker_first_driver": "0",  # a process a CPU for each program that begins, of which few are used
    "RAY_memory_monitor_refresh_ms": "0",  # else whoever else fills this machine's memory has workers of tests killed
    "RAY_TRAIN_ENABLE_CONTROLLER_LOGS": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_LORA_SETTLE_S": "0",  # most tests write a folder and ask for it; tests/unit/test_verified.py waits
}

import gc
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from ray_lora.uncollected import uncollected

WORDS = """
the a an is was very not so too film movie tweet book phone day news story actor plot song word
good bad great awful lovely boring happy sad love hate fine poor nice dull warm cold best worst
fun slow fast bright dark old new big small
""".split()


_BESIDE = ("tests/ray/test_people.py",)

# the same examples each time, unless a number of them is asked for; how long one takes says how busy the machine is
settings.register_profile(
    "tests",
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


class OneCluster(LoadScopeScheduling):
    """With `-n 2` tests on the shared cluster run in one process and all others, file by file, beside them; `_BESIDE`
    too, on a cluster of their own, so that both processes end at about the same time."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "cluster" if file.startswith("tests/ray/") and file not in _BESIDE else file


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no GPU here")


class Failures:
    """Says what failed when it fails: a run that is ended from outside never comes to its summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\n{report.nodeid}: {report.when} failed after {report.duration:.0f} s")
            for line in report.longreprtext.splitlines()[-12:]:
                terminal.write_line(line[:300])


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # with -n the process that tells, not those that test
        config.pluginmanager.register(Failures(config))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What tests import stays to the end: nothing is collected while it comes, and no collection walks through it."""
    with uncollected():
        found = yield
    gc.freeze()
    return found


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneCluster:
    return OneCluster(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def own_ray() -> Iterator[dict[str, str]]:
    """The environment of a program that starts a cluster which no other program of this machine is to join: Ray joins
    whatever runs in its folder. The folder's name is short, because of sockets."""
    folder = tempfile.mkdtemp(prefix="rl-", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    yield environment | {"RAY_TMPDIR": folder, "PYTHONPATH": str(Path(__file__).parents[1])}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base: BERT of two layers, hidden 32, random weights of seed 0, and a word-level tokenizer over `WORDS`."""
    return save_tiny_bert(tmp_path_factory.mktemp("base") / "tiny-bert", seed=0)


@pytest.fixture(scope="session")
def other_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights, so another fingerprint."""
    return save_tiny_bert(tmp_path_factory.mktemp("base") / "other-bert", seed=1)


def save_tiny_bert(folder: Path, seed: int) -> Path:
    """Write a base that AutoModel and AutoTokenizer load; returns its folder."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS, *(f"w{n}" for n in range(140))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Texts of two words and more over `WORDS`, the same for the same seed."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(2, longest))) for _ in range(count)]


def rated(count: int, seed: int = 0, words: Sequence[str] = ("good", "bad")) -> list[dict[str, str]]:
    """Rows `{"text", "label"}` whose label is the last word's: learnable in a few steps."""
    chance = random.Random(seed + 1000)
    names = {"good": "positive", "bad": "negative"}
    rows = []
    for text in sentences(count, seed, longest=6):
        word = chance.choice(list(words))
        rows.append({"text": f"{text} {word}", "label": names.get(word, word)})
    return rows


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """Options of an address in a local S3 server that holds the bucket `rows`."""
    import pyarrow.fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"s3://key:secret@rows/{options}&allow_bucket_creation=true")
    filesystem.create_dir("rows")
    yield options
    server.stop()


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what runners need and nothing else."""
    folder = tmp_path_factory.mktemp("edge") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pinned = ["-c", str(Path(__file__).parent.parent / "constraints.txt")]
    subprocess.run(
        [
            folder / "bin" / "python",
            "-m",
            "pip",
            "install",
            "-q",
            *pinned,
            "numpy",
            "onnxruntime",
            "tokenizers",
            "pillow",
            "soundfile",
        ],
        check=True,
    )
    return folder / "bin" / "python"
