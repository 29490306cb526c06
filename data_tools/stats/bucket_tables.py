"""The figures of buckets as tables."""

from itertools import pairwise

from rich.table import Table

from data_tools.stats.buckets import EDGES, OCTAVE_STEPS, Stats, fullest
from data_tools.stats.look import table_of

GIB = 2**30
ROWS_SHOWN = 30


def bucket_tables(stats: Stats) -> list[Table]:
    """The figures for people to read."""
    return [_source_table(stats), _bucket_table(stats), _factor_table(stats), _left_out_table(stats)]


def _source_table(stats: Stats) -> Table:
    names = ("source", "samples", "left out", "repeats", "draws", "tags", "caption", "mask", "GiB")
    table = table_of("sources, and their draws an epoch", *names)
    for source in stats.sources:
        numbers = (f"{source.samples:,}", f"{source.left_out:,}", f"{source.repeats:g}", f"{source.draws:,.0f}")
        having = (source.with_tags, source.with_caption, source.with_mask)
        shares = (f"{n / max(source.samples, 1):.1%}" for n in having)
        table.add_row(source.name, *numbers, *shares, f"{source.bytes / GIB:,.2f}")
    return table


def _bucket_table(stats: Stats) -> Table:
    shown, title = fullest(stats.buckets, ROWS_SHOWN)
    table = table_of(title, "bucket", "aspect", "samples", "draws", "share", "scaled up", "cropped")
    for b in shown:
        shares = (f"{share:.1%}" for share in (b.share, b.scaled_up, b.cropped))
        aspect = f"{b.width_px / b.height_px:.2f}"
        table.add_row(f"{b.width_px}×{b.height_px}", aspect, f"{b.samples:,}", f"{b.draws:,.0f}", *shares)
    table.add_section()
    table.add_row(
        "all", "", f"{stats.samples:,}", f"{stats.draws:,.0f}", "", f"{stats.scaled_up:.1%}", f"{stats.cropped:.1%}"
    )
    return table


def _factor_table(stats: Stats) -> Table:
    """Classes of half an octave, from a quarter of the size to four times it."""
    table = table_of("scaled by", "from", "to", "samples", "share")
    borders = [0, *range(2 * OCTAVE_STEPS, 6 * OCTAVE_STEPS + 1, OCTAVE_STEPS // 2), len(stats.factors)]
    for first, end in pairwise(borders):
        if count := sum(stats.factors[first:end]):
            lower = f"{EDGES[first]:.2f}" if first else ""
            upper = f"{EDGES[end]:.2f}" if end < len(stats.factors) else ""
            table.add_row(lower, upper, f"{count:,}", f"{count / stats.samples:.1%}")
    return table


def _left_out_table(stats: Stats) -> Table:
    table = table_of("left out", "reason", "samples")
    for reason, count in stats.left_out.items():
        table.add_row(reason, f"{count:,}")
    if not stats.left_out:
        table.add_row("nothing", "0")
    return table
