"""The preview as tables."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from data_tools.preview.draws import Drawn, Learned, Preview, Shown
from data_tools.preview.reading import (
    EMPTY,
    at_most,
    counted,
    fitted,
    forms_in_words,
    gone_by_reason,
    percent,
    size,
    times,
)
from data_tools.stats.forms import FORM_NAMES

TAGS_SHOWN = 40
CAPTIONS_SHOWN = 5
GONE_SHOWN = 12


def tables(preview: Preview) -> Iterator[Table | Text]:
    """Every sample with what it stores, and a table of its draws."""
    for shown in preview.samples:
        yield _heading(shown)
        yield _labels(preview, shown)
        if shown.learned:
            yield _draws(shown, shown.learned)


def _heading(shown: Shown) -> Text:
    facts = [
        shown.labels.source,
        shown.source,
        f"bucket {size(*shown.bucket)}" if shown.bucket else "no bucket",
        f"stored {size(shown.width_px, shown.height_px)}",
        times(shown.per_epoch),
    ]
    return Text.assemble((shown.key, "bold"), f"   {'   '.join(filter(None, facts))}", overflow="fold")


def _labels(preview: Preview, shown: Shown) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("stored tags", _listed(shown.labels.tags, TAGS_SHOWN) or "none")
    written = tuple(tag.text for tag in shown.written)
    if written != shown.labels.tags:
        table.add_row("as written", _listed(written, TAGS_SHOWN) or "none")
    captions, more = at_most(shown.labels.captions, CAPTIONS_SHOWN)
    names = shown.labels.caption_names or ("",) * len(captions)
    for name, caption in zip(names, captions, strict=False):
        table.add_row(f"caption {name}".strip(), caption)
    if more or not captions:
        table.add_row("captions", more or "none")
    if not shown.learned:
        table.add_row("not trained", shown.unused)
        return table
    asked, forms = preview.asked[shown.source].forms, shown.learned.forms
    others = "" if forms == asked else f", where {forms_in_words(asked)} are asked for"
    table.add_row("forms", forms_in_words(forms) + others)
    flip, pattern = preview.config.data.flip, shown.learned.no_flip
    never = f"never, because of the pattern {pattern}" if pattern else ""
    table.add_row("mirrored", never or f"{percent(flip)} of draws")
    table.add_row("crop", fitted(shown.width_px, shown.learned.draws[0].crop))
    if shown.learned.counts is not None:
        table.add_row("mask", counted(shown.learned.counts))
    return table


def _draws(shown: Shown, learned: Learned) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("epoch", "form", "tokens", "mirrored"):
        table.add_column(name, justify="right" if name in {"epoch", "tokens"} else "left")
    table.add_column("prompt", ratio=3, overflow="fold")
    table.add_column("gone", ratio=2, overflow="fold")
    for drawn in learned.draws:
        prompt = drawn.prompt
        facts = (str(drawn.epoch), FORM_NAMES[prompt.form], str(prompt.tokens), "yes" if drawn.mirrored else "")
        table.add_row(*facts, prompt.text or EMPTY, _gone(drawn))
    return table


def _gone(drawn: Drawn) -> str:
    groups = gone_by_reason(drawn.prompt)
    return "; ".join(f"{reason}: {_listed(texts, GONE_SHOWN)}" for reason, texts in groups.items())


def _listed(texts: tuple[str, ...] | list[str], most: int) -> str:
    kept, more = at_most(texts, most)
    return ", ".join(filter(None, (*kept, more)))
