"""The journal: what in a run's data is not a function of the step alone.

Append-only, saved in every checkpoint: from which epoch on which edition of the data holds, from which step on which
samples are replaced, which steps changed nothing because they were bad, and what was set while the run went on. The
steps are a pure function of (recipe, journal).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

from finetune.errors import UserError

EXCLUDED, QUARANTINED = "excluded", "quarantined"
"""Why a sample is replaced that could be used: the recipe wants it so, or the run has found it to be harmful."""


@dataclass(frozen=True)
class SourceState:
    """What a source holds."""

    fingerprint: str
    """Of its index."""
    shards: int
    overlay: str | None
    """Hash of the overlay's content; None where there is none."""
    kept: str | None
    """Name of the overlay's copy in the run's folder."""


@dataclass(frozen=True)
class Edition:
    """The data from an epoch on."""

    epoch: int
    sources: Mapping[str, SourceState]


@dataclass(frozen=True)
class Exclusion:
    """The samples that are replaced from a step on; it takes the place of the exclusion before it."""

    step: int
    samples: tuple[int, ...]


@dataclass(frozen=True)
class Quarantine:
    """Samples that are replaced from a step on for the rest of the run, beside those before them."""

    step: int
    samples: tuple[int, ...]


@dataclass(frozen=True)
class Skip:
    """A step, counted from 0, that was consumed without an update."""

    step: int
    reason: str


@dataclass(frozen=True)
class Jump:
    """A rollback: the weights are those after `step` steps again, and the steps from there up to `to` were consumed
    without leaving anything in them."""

    step: int
    to: int
    first_bad: int
    """The first of the bad steps in a row that led to it."""


@dataclass(frozen=True)
class Setting:
    """A setting of the recipe that has another value from a step on."""

    step: int
    key: str
    """With its dots."""
    value: Any
    """A plain value; None where it is the recipe's own again."""


@dataclass(frozen=True)
class Journal:
    """The history of a run's data."""

    editions: tuple[Edition, ...]
    exclusions: tuple[Exclusion, ...] = ()
    quarantines: tuple[Quarantine, ...] = ()
    skips: tuple[Skip, ...] = ()
    jumps: tuple[Jump, ...] = ()
    settings: tuple[Setting, ...] = ()

    @property
    def current(self) -> Mapping[str, SourceState]:
        """What the newest edition holds."""
        return self.editions[-1].sources

    def excluded(self, step: int) -> dict[int, str]:
        """The samples that are replaced at a step, each with the reason: EXCLUDED or QUARANTINED."""
        begun = [quarantine.samples for quarantine in self.quarantines if quarantine.step <= step]
        return dict.fromkeys(chain(*begun), QUARANTINED) | dict.fromkeys(self._recipe_excludes(step), EXCLUDED)

    def with_edition(self, edition: Edition) -> "Journal":
        """The journal in which an edition takes the place of those that would begin no earlier."""
        return replace(self, editions=(*(e for e in self.editions if e.epoch < edition.epoch), edition))

    def with_exclusion(self, exclusion: Exclusion) -> "Journal":
        """The journal with an exclusion, unless it changes nothing."""
        if self._recipe_excludes(exclusion.step) == frozenset(exclusion.samples):
            return self
        return replace(self, exclusions=(*(e for e in self.exclusions if e.step < exclusion.step), exclusion))

    def with_quarantine(self, quarantine: Quarantine) -> "Journal":
        """The journal with further samples that are replaced."""
        return replace(self, quarantines=(*self.quarantines, quarantine))

    def with_skip(self, skip: Skip) -> "Journal":
        """The journal with a step that was bad."""
        return replace(self, skips=(*self.skips, skip))

    def with_jump(self, jump: Jump) -> "Journal":
        """The journal with a rollback."""
        return replace(self, jumps=(*self.jumps, jump))

    def with_setting(self, setting: Setting) -> "Journal":
        """The journal in which a setting takes the place of those of its key that would begin no earlier."""
        kept = (s for s in self.settings if s.key != setting.key or s.step < setting.step)
        return replace(self, settings=(*kept, setting))

    def to_plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Journal":
        """The inverse of `to_plain`."""
        editions = [
            Edition(e["epoch"], {name: SourceState(**state) for name, state in e["sources"].items()})
            for e in plain["editions"]
        ]
        return cls(
            tuple(editions),
            tuple(Exclusion(e["step"], tuple(e["samples"])) for e in plain["exclusions"]),
            tuple(Quarantine(q["step"], tuple(q["samples"])) for q in plain["quarantines"]),
            tuple(Skip(**skip) for skip in plain["skips"]),
            tuple(Jump(**jump) for jump in plain["jumps"]),
            tuple(Setting(**setting) for setting in plain.get("settings", ())),  # which runs of old did not have
        )

    def _recipe_excludes(self, step: int) -> frozenset[int]:
        begun = [exclusion for exclusion in self.exclusions if exclusion.step <= step]
        return frozenset(begun[-1].samples) if begun else frozenset()


def check_growth(name: str, before: SourceState, after: SourceState, chain: list[str], on_change: str) -> None:
    """Raise UserError unless a source's index is as it was, or has grown and may.

    Args:
        name: the source.
        chain: fingerprints of the index as it is, after each of its shards.
        on_change: "refuse" or "next_epoch".
    """
    if after.fingerprint == before.fingerprint:
        return
    if before.fingerprint not in chain:
        raise UserError(
            f"the index of source {name!r} is not the one that the run began with, nor has it grown out of it: put it "
            "back, or start another run with another run.name"
        )
    if on_change == "refuse":
        raise UserError(
            f"the index of source {name!r} has grown by {after.shards - before.shards} shards since the run began: set "
            "data.on_change=next_epoch to take them in at the next epoch, or put the index back"
        )
