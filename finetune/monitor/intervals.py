"""intervals.jsonl: what a run did since the last flush, summed up by each rank and combined by the first."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from finetune.data.batch import Batch
from finetune.monitor.metrics import Values

N = TypeVar("N", int, float)
ACTIVITIES = ("data_wait", "compute", "saving", "sampling")
GROUPS = {
    "speed": (
        *("images_per_s", "step_s_p50", "step_s_p95", *(f"{name}_share" for name in ACTIVITIES)),
        *("gpu_memory_peak_gib", "mfu", "eta_s"),
    ),
    "data": (
        *("prompt_tokens_mean", "prompt_tokens_p95", "empty_prompt_share", "dropped_tag_share", "truncated_share"),
        *("cache_hits", "cache_misses"),
    ),
    "run": ("checkpoint_age_s", "checkpoint_s", "updates", "skipped", "rollbacks", "restarts"),
}
"""The keys that are numbers, as trackers show them."""
GIB = 2**30


class Shape(NamedTuple):
    """Of micro-batches."""

    width: int
    """Pixels, like the height."""
    height: int
    chunks: int
    """Of 75 tokens, in every prompt."""
    encoded: float
    """Chunks for each prompt that text encoders read; one that fills up prompts is read but once for all of them."""


@dataclass
class Interval:
    """What one rank did between two flushes."""

    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    """From beginning to end."""
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACTIVITIES, 0.0))
    """Seconds by activity."""
    step_s: list[float] = field(default_factory=list)
    """Seconds of every step."""
    own_s: list[float] = field(default_factory=list)
    """Of every step, the seconds in which this rank did not wait for others."""
    samples: Counter[Shape] = field(default_factory=Counter)
    """Samples trained, by the shape of their micro-batches."""
    tokens: Counter[int] = field(default_factory=Counter)
    """Prompts by their length."""
    tags: int = 0
    dropped_tags: int = 0
    truncated: int = 0
    cached: Counter[bool | None] = field(default_factory=Counter)
    """Samples by whether their shards lay in the cache."""
    memory_peak: int | None = None
    """Bytes of the GPU."""

    @contextmanager
    def spending(self, activity: str) -> Iterator[None]:
        """Within it time is spent on one of the `ACTIVITIES`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[activity] += time.perf_counter() - began

    def take(self, batch: Batch) -> None:
        """Count a micro-batch that is trained."""
        encoded = len(batch.input_ids) / len(batch.chunk_rows)
        self.samples[Shape(*batch.size, batch.chunk_rows.shape[1], encoded)] += len(batch.facts)
        for one in batch.facts:
            self.tokens[one.tokens] += 1
            self.tags += one.tags + one.dropped_tags
            self.dropped_tags += one.dropped_tags
            self.truncated += one.truncated
            self.cached[one.cached] += 1

    def step(self, seconds: float, waited_s: float, own_s: float) -> None:
        """Count a step: how long it took, how long of that it waited for data, and how long it did not wait for other
        ranks."""
        self.step_s.append(seconds)
        self.own_s.append(own_s)
        self.spent["data_wait"] += waited_s
        self.spent["compute"] += seconds - waited_s

    def end(self, memory_peak: int | None) -> None:
        """Nothing more belongs to it."""
        self.seconds = time.perf_counter() - self.began
        self.memory_peak = memory_peak


def combined(intervals: Sequence[Interval]) -> Values:
    """What all ranks' intervals come to, by the keys of intervals.jsonl: shares and memory are those of the rank that
    has most, times those of the first. An interval has steps."""
    first, peaks = intervals[0], [one.memory_peak for one in intervals if one.memory_peak is not None]
    samples = sum((one.samples for one in intervals), Counter[Shape]())
    tokens = sum((one.tokens for one in intervals), Counter[int]())
    cached = sum((one.cached for one in intervals), Counter[bool | None]())
    tags, drawn, remote = sum(one.tags for one in intervals), samples.total(), cached[True] + cached[False]
    return {
        "seconds": first.seconds,
        "images_per_s": drawn / first.seconds,
        "step_s_p50": quantile(Counter(first.step_s), 0.5),
        "step_s_p95": quantile(Counter(first.step_s), 0.95),
        **{f"{name}_share": max(one.spent[name] / one.seconds for one in intervals) for name in ACTIVITIES},
        "gpu_memory_peak_gib": max(peaks) / GIB if peaks else None,
        "buckets": by_bucket(samples),
        "prompt_tokens_mean": sum(length * count for length, count in tokens.items()) / drawn,
        "prompt_tokens_p95": quantile(tokens, 0.95),
        "empty_prompt_share": tokens[0] / drawn,
        "dropped_tag_share": sum(one.dropped_tags for one in intervals) / tags if tags else 0.0,
        "truncated_share": sum(one.truncated for one in intervals) / drawn,
        "cache_hits": cached[True] if remote else None,
        "cache_misses": cached[False] if remote else None,
    }


def quantile(counts: Counter[N], share: float) -> N:
    """The least value that at least this share of all is not above (the nearest rank)."""
    wanted, seen = share * counts.total(), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            break
    return value


def by_bucket(samples: Counter[Shape]) -> dict[str, int]:
    """Samples by "WIDTHxHEIGHT", the most first."""
    buckets: Counter[str] = Counter()
    for shape, count in samples.items():
        buckets[f"{shape.width}x{shape.height}"] += count
    return dict(buckets.most_common())


def mean_deciles(lines: Sequence[Values]) -> list[float | None]:
    """The mean of some steps' `loss_by_decile`, each step alike; None where no step has one."""
    columns = zip(*(line["loss_by_decile"] for line in lines), strict=True)
    there = ([value for value in column if value is not None] for column in columns)
    return [sum(values) / len(values) if values else None for values in there]
