"""The figures of prompts as tables."""

from collections.abc import Iterable, Mapping

from rich.table import Table

from data_tools.stats.forms import FORM_NAMES
from data_tools.stats.look import shortened, table_of
from data_tools.stats.prompts import LengthFigures, PairFigures, PromptFigures, TagFigures, most_lost

TAGS_SHOWN = 30
LOST_SHOWN = 15
PAIRS_SHOWN = 20
CLASS_SHOWN_TOKENS = 25
TAG_LETTERS = 48


def prompt_tables(figures: PromptFigures) -> list[Table]:
    """The figures for people to read; those of tags where there are any."""
    tables = [_form_table(figures), _prompt_table(figures), _length_table(figures.lengths)]
    if figures.lost_tags:
        tables.append(_lost_table(figures.lost_tags))
    if figures.tags:
        shown = min(TAGS_SHOWN, len(figures.tags))
        tables.append(_tag_table(f"the {shown} most frequent of {len(figures.tags):,} tags", figures.tags[:shown]))
    if lost := most_lost(figures.tags)[:LOST_SHOWN]:
        tables.append(_tag_table("tags that are lost most", lost))
    if figures.implied_pairs:
        tables.append(_pair_table(figures.implied_pairs))
    return tables


def _form_table(figures: PromptFigures) -> Table:
    table = table_of("forms of prompts", "source", *(name.replace(" ", "\n") for name in FORM_NAMES.values()))
    for source in figures.sources:
        table.add_row(f"{source.source}: asked", *_shares(source.asked))
        table.add_row("in effect", *_shares(source.in_effect))
    table.add_section()
    table.add_row("all: drawn", *_shares(figures.forms))
    return table


def _shares(forms: Mapping[str, float]) -> Iterable[str]:
    return (f"{forms[form]:.1%}" if form in forms else "" for form in FORM_NAMES)


def _prompt_table(figures: PromptFigures) -> Table:
    title = f"prompts of {figures.samples:,} samples, {figures.draws} of each"
    table = table_of(title, "", "")
    table.add_row("empty", f"{figures.empty:.1%}")
    table.add_row("emptied on purpose", f"{figures.emptied:.1%}")
    table.add_row("samples never mirrored", f"{figures.no_flip:.1%}")
    if figures.tags:
        table.add_row("tags of a sample", f"{figures.stored_tags:.1f}")
        table.add_row("tags of a prompt that has any", f"{figures.drawn_tags:.1f}")
    if figures.unreadable:
        table.add_row("further samples, not readable", f"{figures.unreadable:,}")
    for name, tokens in _tokens(figures.lengths).items():
        table.add_row(name, str(tokens))
    table.add_row(f"cut to {figures.lengths.limit} tokens", f"{figures.lengths.cut:.1%}")
    table.show_header = False
    return table


def _tokens(lengths: LengthFigures) -> dict[str, int]:
    return {
        "tokens of a prompt that is not empty: median": lengths.median,
        "95% have up to": lengths.p95,
        "longest": lengths.longest,
    }


def _length_table(lengths: LengthFigures) -> Table:
    """Classes of a third of what CLIP reads at a time."""
    table = table_of("prompts by tokens", "from", "to", "prompts", "share")
    step, total = CLASS_SHOWN_TOKENS // lengths.class_tokens, max(sum(lengths.classes), 1)
    for first in range(0, len(lengths.classes), step):
        count, lower = sum(lengths.classes[first : first + step]), first * lengths.class_tokens
        table.add_row(str(lower + 1), str(lower + CLASS_SHOWN_TOKENS), f"{count:,}", f"{count / total:.1%}")
    return table


def _lost_table(reasons: Mapping[str, float]) -> Table:
    table = table_of("stored tags that are lost", "reason", "share of tags")
    for reason, share in reasons.items():
        table.add_row(reason, f"{share:.1%}")
    return table


def _tag_table(title: str, tags: Iterable[TagFigures]) -> Table:
    table = table_of(title, "tag", "samples", "prompts", "kept", "mostly lost")
    for tag in tags:
        kept = "" if tag.kept is None else f"{tag.kept:.1%}"
        name, reason = shortened(tag.tag, TAG_LETTERS), shortened(tag.mostly or "", TAG_LETTERS)
        table.add_row(name, f"{tag.samples:.1%}", f"{tag.prompts:.1%}", kept, reason)
    return table


def _pair_table(pairs: list[PairFigures]) -> Table:
    shown = pairs[:PAIRS_SHOWN]
    title = f"the {len(shown)} most frequent of {len(pairs):,} implied pairs"
    table = table_of(title, "tag", "implies", "samples", "still together")
    for pair in shown:
        together = "" if pair.together is None else f"{pair.together:.1%}"
        names = (shortened(name, TAG_LETTERS) for name in (pair.tag, pair.implied))
        table.add_row(*names, f"{pair.samples:.1%}", together)
    return table
