"""What is said and kept of ranks that have stopped: a folder for each time, with the stacks of all that could tell."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.health.pulse import Beat

FOLDER = "stalls"
"""Of a run's folder."""
_FACTS, _TOLD = "stall.json", "told"


@dataclass(frozen=True)
class Stall:
    """A standstill of the run."""

    culprits: tuple[Beat, ...]
    """The ranks furthest behind, for which the others wait."""
    others: tuple[Beat, ...]
    seconds: float
    """For so long nobody has done anything."""
    silent: frozenset[int]
    """Ranks of which nothing has been heard at all: stopped, dead, or stuck outside of Python."""

    @property
    def name(self) -> str:
        """The same for all ranks that notice it, and never given twice."""
        first = self.culprits[0]
        return f"step-{first.step + 1:08d}-rank-{first.rank:05d}-pid-{first.pid}"

    @property
    def facts(self) -> dict[str, Any]:
        """What an event tells; steps are counted from 1 as in metrics."""
        first = self.culprits[0]
        ranks = [beat.rank for beat in self.culprits]
        told = {"step": first.step + 1, "activity": first.activity, "ranks": ranks, "host": first.host}
        return {**told, "pid": first.pid, "seconds": round(self.seconds, 1), "reason": self.sentence}

    @property
    def sentence(self) -> str:
        """Who has stopped, where, and who waits for it."""
        first = self.culprits[0]
        where = f"in {first.activity} of step {first.step + 1} for {self.seconds:.0f} s"
        if len(self.culprits) > 1:
            ranks = ", ".join(str(beat.rank) for beat in self.culprits)
            waiting = f" and ranks {_listed(self.others)} wait for them" if self.others else ""
            return f"ranks {ranks} have all been {where}, none of them behind the others{waiting}"
        if not first.pid:
            return f"rank {first.rank} has not begun for {self.seconds:.0f} s while ranks {_listed(self.others)} wait"
        mute = " and does not answer" if first.rank in self.silent else ""
        waiting = f", while ranks {_listed(self.others)} wait for it" if self.others else ""
        return f"rank {first.rank} (process {first.pid} on {first.host}) has been {where}{mute}{waiting}"

    def declare(self, stalls: Path) -> bool:
        """Make the stall's folder, unless another rank was faster.

        Args:
            stalls: FOLDER of the run's folder.
        """
        folder = stalls / self.name
        stalls.mkdir(exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            return False
        beats = [beat._asdict() for beat in (*self.culprits, *self.others)]
        temporary = folder / "stall.tmp"
        temporary.write_text(json.dumps({**self.facts, "beats": beats}, indent=1), encoding="utf-8")
        temporary.replace(folder / _FACTS)
        return True


def declared(stalls: Path, known: Collection[str], host: str, pid: int) -> tuple[Path, dict[str, Any]] | None:
    """The folder and the facts of a stall, other than those known, in a start of which a process is part."""
    for path in stalls.glob(f"*/{_FACTS}"):
        if path.parent.name in known:
            continue
        facts = json.loads(path.read_text(encoding="utf-8"))
        if any((beat["host"], beat["pid"]) == (host, pid) for beat in facts.pop("beats")):
            return path.parent, facts
    return None


def untold(stalls: Path) -> Iterator[dict[str, Any]]:
    """The facts of stalls that have not got into the run's events, as rank 0 was stopped itself; they count as told
    then."""
    for path in sorted(stalls.glob(f"*/{_FACTS}")):
        if not (path.parent / _TOLD).exists():
            facts = json.loads(path.read_text(encoding="utf-8"))
            yield {name: fact for name, fact in facts.items() if name != "beats"}
            mark_told(path.parent)


def mark_told(folder: Path) -> None:
    """Note that the run's events have the stall of a folder."""
    (folder / _TOLD).touch()


def _listed(beats: Sequence[Beat]) -> str:
    return ", ".join(str(beat.rank) for beat in beats)
