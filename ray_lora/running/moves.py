"""Jobs on their way from a pack that holds many to one that has nothing left to do.

    moves.begin(records, pack, held, share=2)      # two of a pack's five are to leave it
    moves.asked, moves.saved                       # to be saved before the next step, and to be let go
    moves.arrived(records, pack, held)             # those that have left wait for another pack

A job that moves is saved where it stands, leaves, and goes on from its checkpoint as it would after a kill: it makes no
step meanwhile, and no two packs hold it at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from ray_lora.running.records import Record

_WORTH = 8  # steps that a job must have left: it is saved, read and put into a slot again


class Moves:
    """Which jobs move, and how far they are.

    Attributes:
        asked: jobs that are to be saved and to make no step until they have left.
        saved: those of which that is done: they are to leave.
    """

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.saved: set[str] = set()

    def begin(self, records: Mapping[str, Record], pack: str, held: Collection[str], share: int) -> None:
        """Choose who leaves a pack: of those who may, as many as it holds beyond its share, who have most left to do.

        Args:
            held: the pack's jobs. share: as many as each pack would hold if all held as many.
        """
        mine = [records[name] for name in held if records[name].status == "running" and records[name].pack == pack]
        going = sum(record.job.name in self.asked | self.saved for record in mine)
        free = [record for record in mine if record.job.name not in self.asked | self.saved and _may(record)]
        free.sort(key=lambda record: record.step - record.total)
        self.asked |= {record.job.name for record in free[: max(0, len(mine) - going - share)]}

    def possible(self, records: Mapping[str, Record], share: int) -> bool:
        """Whether a job is on its way, or may leave a pack that holds more than its share."""
        running = [record for record in records.values() if record.status == "running"]
        held = Counter(record.pack for record in running)
        return bool(self.asked | self.saved) or any(held[record.pack] > share and _may(record) for record in running)

    def note(self, names: Collection[str]) -> None:
        """These jobs' states were written."""
        self.saved |= self.asked & set(names)
        self.asked -= set(names)

    def arrived(self, records: Mapping[str, Record], pack: str, held: Collection[str]) -> bool:
        """Those that have left a pack wait for another one; whether there are any. One that has ended meanwhile moves
        no more, and one whose pack was killed goes on from its checkpoint wherever it is taken."""
        gone = False
        for name in self.asked | self.saved:
            record = records[name]
            if record.status != "running":
                self._forget(name)
            elif record.pack == pack and name not in held:
                record.status, record.pack, gone = "waiting", None, True
                self._forget(name)
        return gone

    def _forget(self, name: str) -> None:
        self.asked.discard(name)
        self.saved.discard(name)


def _may(record: Record) -> bool:
    """Whether a job may move: nobody is deciding on it, and it has enough left."""
    return not (record.held or record.announced) and record.total - record.step >= _WORTH
