"""The figures that are shown of a run: how each is called, written, and named for Prometheus."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from finetune.runs.view.words import count, counts, duration, fixed, gib, percent, plain, rates, short, spread

Shown = Callable[[Any], str]


class Figure(NamedTuple):
    """A figure, by its key in the files."""

    key: str
    label: str
    shown: Shown
    metric: str | None = None
    """For Prometheus, with the unit; what ends with _total is a counter."""
    labelled: str | None = None
    """The label of each value where the figure is several by name or, for a list, by number."""
    scale: float = 1.0
    """What turns the figure into the metric's unit."""


FIGURES: dict[str, tuple[Figure, ...]] = {
    "quality": (
        Figure("loss_mean", "loss, last 50 steps", fixed(5), "longhaul_loss_mean"),
        Figure("loss", "loss, last step", fixed(5), "longhaul_loss"),
        Figure("loss_by_decile", "loss by decile", spread, "longhaul_loss_by_decile", "decile"),
        Figure("validation_loss", "validation loss", fixed(5), "longhaul_validation_loss"),
        Figure("validation_step", "validated after step", count),
        Figure("ema_distance", "EMA distance", short, "longhaul_ema_distance_ratio"),
        Figure("grad_norm", "gradient norm", short, "longhaul_gradient_norm"),
        Figure("lr", "learning rate", rates, "longhaul_learning_rate", "group"),
    ),
    "speed": (
        Figure("images_per_s", "images/s", short, "longhaul_images_per_second"),
        Figure("step_s_p50", "step, median", duration, "longhaul_step_median_seconds"),
        Figure("step_s_p95", "step, 95%", duration, "longhaul_step_p95_seconds"),
        Figure("data_wait_share", "waiting for data", percent, "longhaul_data_wait_ratio"),
        Figure("compute_share", "computing", percent, "longhaul_compute_ratio"),
        Figure("saving_share", "saving", percent, "longhaul_saving_ratio"),
        Figure("sampling_share", "sampling", percent, "longhaul_sampling_ratio"),
        Figure("gpu_memory_peak_gib", "GPU memory, peak", gib, "longhaul_gpu_memory_peak_bytes", scale=2**30),
        Figure("mfu", "MFU", percent, "longhaul_mfu_ratio"),
        Figure("eta_s", "ETA", duration, "longhaul_eta_seconds"),
    ),
    "data": (
        Figure("epoch", "epoch", fixed(3), "longhaul_epoch"),
        Figure("buckets", "buckets", counts, "longhaul_bucket_samples", "bucket"),
        Figure("prompt_tokens_mean", "prompt tokens, mean", short, "longhaul_prompt_tokens_mean"),
        Figure("prompt_tokens_p95", "prompt tokens, 95%", short, "longhaul_prompt_tokens_p95"),
        Figure("empty_prompt_share", "empty prompts", percent, "longhaul_empty_prompt_ratio"),
        Figure("dropped_tag_share", "dropped tags", percent, "longhaul_dropped_tag_ratio"),
        Figure("truncated_share", "truncated prompts", percent, "longhaul_truncated_ratio"),
        Figure("bad_samples", "bad samples", counts, "longhaul_bad_samples_total", "reason"),
        Figure("excluded_draws", "excluded draws", count, "longhaul_excluded_draws_total"),
        Figure("cache_hits", "cache hits", count, "longhaul_cache_hits_total"),
        Figure("cache_misses", "cache misses", count, "longhaul_cache_misses_total"),
    ),
    "run": (
        Figure("checkpoint_age_s", "age of last checkpoint", duration, "longhaul_checkpoint_age_seconds"),
        Figure("checkpoint_s", "last save took", duration, "longhaul_checkpoint_save_seconds"),
        Figure("updates", "updates", count, "longhaul_updates_total"),
        Figure("skipped", "skipped steps", count, "longhaul_skipped_steps_total"),
        Figure("rollbacks", "rollbacks", count, "longhaul_rollbacks_total"),
        Figure("restarts", "restarts", count, "longhaul_restarts_total"),
        Figure("requests_waiting", "requests not taken yet", count, "longhaul_requests_waiting"),
    ),
}
"""By group, in the order in which they are shown."""
KEYS = tuple(figure.key for figures in FIGURES.values() for figure in figures)


def shown(values: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The figures that a run has, by group and label."""
    groups = {
        group: {
            figure.label: text for figure in figures if (text := said(figure.shown, values, figure.key)) is not None
        }
        for group, figures in FIGURES.items()
    }
    return {group: texts for group, texts in groups.items() if texts}


def said(form: Shown, values: Mapping[str, Any], key: str) -> str | None:
    """A figure as it is shown; None where it is missing, or another version has written it otherwise."""
    with suppress(TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
        return plain(form(values[key])) if key in values else None
    return None
