"""The figures of prompts as a picture."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from data_tools.stats.forms import FORM_NAMES
from data_tools.stats.look import (
    FAINT,
    INK,
    LIGHT,
    WARM,
    figure_of,
    in_counts,
    in_percent,
    open_frame,
    shortened,
)
from data_tools.stats.prompts import PairFigures, PromptFigures, most_lost
from finetune.model.config import CHUNK_TOKENS

TAGS_SHOWN = 36
LOST_SHOWN = PAIRS_SHOWN = 12
SOURCES_SHOWN = 4
TAG_LETTERS = 28
NARROWEST_NAMED = 0.04
"""Narrower parts of a bar have no room for their share."""
FORM_COLOURS = dict(zip(FORM_NAMES, (INK, WARM, "#5b8db8", "#e3a587", "#b8b8b8", FAINT), strict=True))


def draw_prompts(figures: PromptFigures, path: Path) -> None:
    """Draw tags before and after the policy, forms, lengths, the tags that are lost most and implied pairs, as far as
    there are any; PNG."""
    heading = (
        f"prompts of {figures.samples:,} samples, {figures.draws} of each   empty: {figures.empty:.1%}   "
        f"cut: {figures.lengths.cut:.1%}   tags stored: {figures.stored_tags:.1f}   "
        f"in a prompt of tags: {figures.drawn_tags:.1f}   never mirrored: {figures.no_flip:.1%}"
    )
    panels = _panels(figures)
    figure = figure_of(14, 2 + 2.2 * len(panels), heading)
    axes = figure.subplot_mosaic(panels, height_ratios=[1, 1.2, 1.5][: len(panels)])
    for name, draw in PANELS.items():
        if name in axes:
            draw(axes[name], figures)
    open_frame(*axes.values())
    with warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph ")
        figure.savefig(path, dpi=110)


def _panels(figures: PromptFigures) -> list[Any]:
    """Which panel fills each place, row by row."""
    if not figures.tags:
        return [["forms"], ["lengths"]]
    rows = [["tags", "forms", "forms"], ["tags", "lengths", "lengths"]]
    there = {"lost": bool(most_lost(figures.tags)), "pairs": bool(_drawn_pairs(figures))}
    if any(there.values()):
        last = [name for name, is_there in there.items() if is_there]
        rows.append(["tags", last[0], last[-1]])
    return rows


def _draw_tags(axis: Axes, figures: PromptFigures) -> None:
    """Over the share of samples that store a tag, the share of prompts that have it."""
    tags = figures.tags[:TAGS_SHOWN]
    places = range(len(tags))
    axis.barh(places, [tag.samples for tag in tags], color=LIGHT, label="samples that store it")
    axis.barh(places, [tag.prompts for tag in tags], height=0.45, color=INK, label="prompts that have it")
    _name_rows(axis, [tag.tag for tag in tags])
    in_percent(axis.xaxis)
    axis.legend(loc="lower right", frameon=False)
    axis.set_title(f"the {len(tags)} most frequent of {len(figures.tags):,} tags", loc="left")


def _draw_forms(axis: Axes, figures: PromptFigures) -> None:
    """Stacked bars: what every source asks for and what comes of it, and last what was drawn."""
    bars = []
    for source in figures.sources[:SOURCES_SHOWN]:
        bars += [(f"{source.source}: asked", source.asked), ("in effect", source.in_effect)]
    bars.append(("drawn, all sources", figures.forms))
    left = [0.0] * len(bars)
    for form, name in FORM_NAMES.items():
        widths = [shares.get(form, 0.0) for _, shares in bars]
        if any(widths):
            drawn = axis.barh(range(len(bars)), widths, left=left, color=FORM_COLOURS[form], label=name, height=0.7)
            labels = [f"{width:.0%}" if width > NARROWEST_NAMED else "" for width in widths]
            colour = "white" if form in ("tags", "caption") else "black"
            axis.bar_label(drawn, labels, label_type="center", fontsize=8, color=colour)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    _name_rows(axis, [name for name, _ in bars])
    axis.set_xlim(0, 1)
    in_percent(axis.xaxis)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=len(FORM_NAMES), frameon=False, fontsize=8)
    axis.set_title("forms", loc="left")


def _draw_lengths(axis: Axes, figures: PromptFigures) -> None:
    """Prompts by tokens, as far as the last of CLIP's chunks that any of them needs."""
    lengths, step = figures.lengths, figures.lengths.class_tokens
    chunks = max(1, -(-lengths.longest // CHUNK_TOKENS))
    axis.bar([step * i for i in range(len(lengths.classes))], lengths.classes, step, align="edge", color=INK)
    for tokens in range(CHUNK_TOKENS, chunks * CHUNK_TOKENS, CHUNK_TOKENS):
        axis.axvline(tokens, color="black", linewidth=0.5, alpha=0.3)
    axis.axvline(lengths.median, color=WARM, label=f"median {lengths.median}")
    axis.axvline(lengths.p95, color=WARM, linestyle="--", label=f"95% have up to {lengths.p95}")
    axis.plot([], [], " ", label=f"longest {lengths.longest}, limit {lengths.limit}")
    axis.legend(loc="upper right", framealpha=1, edgecolor="none")
    axis.set_xlim(0, chunks * CHUNK_TOKENS)
    axis.set_xticks(range(0, chunks * CHUNK_TOKENS + 1, CHUNK_TOKENS * max(1, chunks // 8)))
    in_counts(axis.yaxis)
    axis.set_title(f"prompts by tokens: {lengths.cut:.1%} are cut", loc="left")


def _draw_lost(axis: Axes, figures: PromptFigures) -> None:
    tags = most_lost(figures.tags)[:LOST_SHOWN]
    _draw_shares(axis, [tag.tag for tag in tags], [tag.kept or 0.0 for tag in tags], INK)
    axis.set_title("kept of the tags lost most", loc="left")


def _draw_pairs(axis: Axes, figures: PromptFigures) -> None:
    pairs = _drawn_pairs(figures)
    names = [f"{pair.tag} → {pair.implied}" for pair in pairs]
    _draw_shares(axis, names, [pair.together or 0.0 for pair in pairs], WARM)
    axis.set_title("implied pairs still together", loc="left")


def _drawn_pairs(figures: PromptFigures) -> list[PairFigures]:
    return [pair for pair in figures.implied_pairs if pair.together is not None][:PAIRS_SHOWN]


def _draw_shares(axis: Axes, names: Sequence[str], shares: Sequence[float], colour: str) -> None:
    axis.barh(range(len(names)), [1.0] * len(names), color=FAINT)
    axis.barh(range(len(names)), shares, color=colour)
    _name_rows(axis, names)
    axis.set_xlim(0, 1)
    in_percent(axis.xaxis)


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Names of bars, the first on top; a dollar in them is no formula."""
    axis.set_yticks(range(len(names)), [shortened(name, TAG_LETTERS) for name in names], fontsize=8, parse_math=False)
    axis.set_ylim(len(names) - 0.4, -0.6)


PANELS = {"tags": _draw_tags, "forms": _draw_forms, "lengths": _draw_lengths, "lost": _draw_lost, "pairs": _draw_pairs}
