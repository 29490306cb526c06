"""From a recipe and its journal to the two things that loading needs: the plan, and the sources that it draws from."""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from finetune.data.buckets import I64, NONE, PIECE, U16, assign_buckets, bucket_sizes, merge_rare
from finetune.data.cache import Cache
from finetune.data.config import MAX_REPEATS, BucketsConfig, DataConfig, SourceConfig
from finetune.data.held_out import held_out
from finetune.data.index import FILE_NAME, Index
from finetune.data.journal import Edition, Exclusion, Journal, SourceState, check_growth
from finetune.data.latent_sets import REMEDY, of_pictures, set_folder
from finetune.data.layout import HeldOut, Layout, SourceSamples
from finetune.data.outage import Patience
from finetune.data.overlay import Overlay, overlay_digest, take_in
from finetune.data.plan import Chapter, Plan
from finetune.data.remote import Remote, is_remote
from finetune.data.shapes import PlanSettings, Shape
from finetune.data.sources import Source, Sources
from finetune.errors import UserError

GIB = 2**30


class DataSet:
    """A recipe's sources as they are now, and what follows from them and a journal."""

    def __init__(self, data: DataConfig, settings: PlanSettings, kept: Path, notes: Path | None = None) -> None:
        """Open the indexes.

        Args:
            kept: folder for copies of overlays.
            notes: folder for the notes of processes that wait for data; None leaves none.

        Raises:
            UserError: an index is missing, damaged or out of reach, or latents are not those of its pictures.
        """
        self.data = data
        self.settings = settings
        self.kept = kept
        self.remote = Remote(data.cache.timeout_s)
        self.patience = Patience(notes, data.cache.alert_after_s)
        folder = Path(data.cache.folder)
        self.cache = Cache(folder, round(data.cache.size_gib * GIB), self.remote, self.patience)
        self.indexes = {
            name: open_index(source.path, self.remote, self.patience, folder)
            for name, source in data.all_sources.items()
        }
        self.latents = {name: self._open_latents(name) for name in self.indexes if data.latents}

    def began(self) -> Journal:
        """The journal of a run that begins with the sources as they are."""
        return self.excluding(Journal((Edition(0, self._states()),)), 0)

    def went_on(self, journal: Journal, step: int) -> Journal:
        """The journal of a run that goes on with a step, after what has changed since.

        Raises:
            UserError: an index is another, or has grown and the recipe does not allow that.
        """
        states = self._states()
        if states.keys() != journal.current.keys():
            raise UserError(
                f"data.sources are {', '.join(states)} now and were {', '.join(journal.current)} when the run began: "
                "put them back, or start another run with another run.name"
            )
        for name, state in states.items():
            check_growth(name, journal.current[name], state, self.indexes[name].chain, self.data.on_change)
        if states != journal.current:
            border = self.plan(journal).next_border(step)
            journal = journal.with_edition(Edition(border, states))
        return self.excluding(journal, step)

    def excluding(self, journal: Journal, step: int) -> Journal:
        """The journal with what `data.exclude` names, from a step on. Raises UserError where there is no such file."""
        if self.data.exclude is None:
            return journal.with_exclusion(Exclusion(step, ()))
        path = Path(self.data.exclude).expanduser()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"data.exclude {path} cannot be read ({error}): give a text file of keys, one a line"
            ) from error
        keys = [line.strip() for line in lines if line.strip()]
        sources = self.sources(journal)
        if unknown := sources.unknown(keys):
            raise UserError(
                f"data.exclude {path} has {len(unknown)} lines that name no sample, {unknown[0]!r} the first: take "
                f"them out; keys are like {sources.all[0].index.key(0)!r}"
            )
        return journal.with_exclusion(Exclusion(step, tuple(sources.find(keys))))

    def sources(self, journal: Journal) -> Sources:
        """What the samples of a run with this journal are read from."""
        opened = []
        for name in self.data.all_sources:
            overlays = {e.epoch: self._overlay(e.sources[name]) for e in journal.editions}
            opened.append(Source(name, self.indexes[name], overlays, self.latents.get(name, {})))
        return Sources(opened, self.data.text, self.remote, self.cache, self.patience)

    def plan(self, journal: Journal) -> Plan:
        """The steps of a run with this journal. Raises UserError where there are fewer samples than a micro-batch."""
        editions, shapes = journal.editions, self.settings.shapes
        different = [
            shape.buckets for i, shape in enumerate(shapes) if shape.buckets not in [s.buckets for s in shapes[:i]]
        ]
        sizes = [bucket_sizes(buckets) for buckets in different]
        first_buckets = np.cumsum([0, *map(len, sizes)])
        chapters = []
        for epoch in sorted({e.epoch for e in editions} | {s.epoch for s in shapes}):
            edition, shape = _holding(editions, epoch), _holding(shapes, epoch)
            first_bucket = int(first_buckets[different.index(shape.buckets)])
            chapters.append(Chapter(self._layout(epoch, edition, shape), shape.micro_batch, first_bucket))
        return Plan(chapters, np.concatenate(sizes), global_batch=self.settings.global_batch, seed=self.settings.seed)

    def bucketed(self, edition: Edition, shape: Shape) -> list[SourceSamples]:
        """The samples of every source in the buckets that an edition trains them in. Raises UserError where there are
        fewer than a micro-batch."""
        sizes = bucket_sizes(shape.buckets)
        sources = [
            self._samples(number, config, edition.sources[name], shape.buckets)
            for number, (name, config) in enumerate(self.data.all_sources.items())
        ]
        counts = sum(weighted_counts(source, len(sizes)) for source in sources)
        target = merge_rare(np.asarray(counts), sizes, shape.micro_batch, no_upscale=shape.buckets.no_upscale)
        for source in sources:
            move(source.buckets, target)
            if source.held_out is not None:
                move(source.held_out.buckets, target)
        return sources

    def _open_latents(self, name: str) -> dict[int, Index]:
        """A source's latents by the first epoch in which each holds."""
        folders = {shape.epoch: set_folder(self.data, name, shape.buckets) for shape in self.settings.shapes}
        needed = f"the latents of source {name!r} for these data.buckets, data.background and data.mask"
        opened = {}
        for folder in set(folders.values()):
            remedy = f"make {needed} {REMEDY}"
            latents = open_index(folder, self.remote, self.patience, Path(self.data.cache.folder), remedy)
            opened[folder] = of_pictures(latents, self.indexes[name], name, flip=self.data.flip > 0)
        return {epoch: opened[folder] for epoch, folder in folders.items()}

    def _states(self) -> dict[str, SourceState]:
        states = {}
        for number, (name, config) in enumerate(self.data.all_sources.items()):
            index, overlay, kept = self.indexes[name], None, None
            if config.overlay.path:
                overlay, kept = overlay_digest(config.overlay), take_in(config.overlay, index, number, self.kept)
            states[name] = SourceState(index.fingerprint, len(index.shards), overlay, kept)
        return states

    def _overlay(self, state: SourceState) -> Overlay | None:
        if state.kept is None:
            return None
        path = self.kept / state.kept
        if not path.is_file():
            raise UserError(f"{path} is missing, an overlay's copy that the run has trained with: restore it")
        return Overlay(path)

    def _layout(self, epoch: int, edition: Edition, shape: Shape) -> Layout:
        return Layout(
            self.bucketed(edition, shape),
            bucket_sizes(shape.buckets),
            window_shards=self.data.window_shards,
            seed=self.settings.seed,
            first_epoch=epoch,
        )

    def _samples(self, number: int, config: SourceConfig, state: SourceState, sizes: BucketsConfig) -> SourceSamples:
        name = list(self.data.all_sources)[number]
        index = self.indexes[name].head(state.shards)
        if index.fingerprint != state.fingerprint:
            raise UserError(f"the index of source {name!r} is not the same on all machines: copy it from the first")
        buckets = assign_buckets(index.width, index.height, sizes)
        overlay = self._overlay(state)
        if overlay:
            buckets[overlay.left_out[overlay.left_out < len(index)]] = NONE
        held = None
        if self.data.held_out:
            rows = held_out(index.keys, self.data.held_out)
            held = HeldOut(rows, buckets[rows])
            buckets[rows] = NONE
        repeats = Fraction(config.repeats).limit_denominator(MAX_REPEATS)
        times = index.repeats if len(index) and int(index.repeats.max()) > 1 else None
        return SourceSamples(number, index.first_rows, buckets, repeats, times, held)


B = TypeVar("B", Edition, Shape)


def _holding(begun: Sequence[B], epoch: int) -> B:
    """What holds in an epoch, of things that each begin at one."""
    return [one for one in begun if one.epoch <= epoch][-1]


def open_index(location: str, remote: Remote, patience: Patience, cache: Path, remedy: str | None = None) -> Index:
    """The index at a folder, or at the URL of a folder, of which a copy is kept in the cache's folder.

    Args:
        remedy: what makes it, where that is not `data_tools index`.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if any(sign in location for sign in "{*") or location.endswith((".tar", ".txt")):
        raise UserError(
            f"{location} names shards, and a run needs their index: make it with `python -m data_tools index "
            f"'{location}' --out FOLDER` and give FOLDER"
        )
    if not is_remote(location):
        return Index.load(location, remedy=remedy)
    url = f"{location.rstrip('/')}/{FILE_NAME}"
    folder = cache.expanduser() / "indexes" / _hashed(location)
    folder.mkdir(parents=True, exist_ok=True)
    version, copy = folder / "version", folder / FILE_NAME
    with FileLock(folder / "lock"):
        try:
            newest = patience.for_a_while(lambda: remote.version(url))
            if not version.exists() or version.read_text(encoding="utf-8") != newest:
                temporary = folder / f"{FILE_NAME}.part"
                size = remote.size(url)
                temporary.write_bytes(patience.for_a_while(lambda: remote.read(url, 0, size)))
                temporary.replace(copy)
                version.write_text(newest, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{url} cannot be read ({error}): check the address and your credentials, or "
                f"{remedy or 'index its shards with `python -m data_tools index URLS --out FOLDER`'}"
            ) from error
    return Index.load(folder, root=location, remedy=remedy)


def weighted_counts(source: SourceSamples, buckets: int) -> npt.NDArray[np.float64]:
    """Draws an epoch of every bucket, on average: float64 [buckets]."""
    weights = None if source.times is None else source.times.astype(np.float64)
    counts = np.bincount(source.buckets, weights, minlength=NONE + 1)[:buckets]
    draws: npt.NDArray[np.float64] = (counts * float(source.repeats)).astype(np.float64)
    return draws


def move(buckets: U16, target: I64) -> None:
    """Replace each bucket by its target, in place; NONE stays."""
    table = np.full(NONE + 1, NONE, dtype=np.uint16)
    table[: len(target)] = target
    for start in range(0, len(buckets), PIECE):
        buckets[start : start + PIECE] = table[buckets[start : start + PIECE]]


def _hashed(location: str) -> str:
    return hashlib.sha256(location.encode()).hexdigest()[:32]
