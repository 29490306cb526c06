"""A sample as a part of the page: its picture, its labels and its draws."""

import base64
import io
from collections.abc import Iterable, Iterator

from PIL import Image

from data_tools.preview.draws import Asked, Drawn, Learned, Preview, Shown
from data_tools.preview.markup import Html, element, together
from data_tools.preview.reading import (
    EMPTY,
    at_most,
    counted,
    cut_away,
    fitted,
    forms_in_words,
    gone_by_reason,
    moved,
    percent,
    size,
    times,
)
from data_tools.stats.forms import FORM_NAMES
from finetune.data.prompts.prompter import Prompt
from finetune.data.prompts.vocabulary import Tag

OPEN_DRAWS = 8
"""So many draws are seen at once; the others unfold."""
GONE_SHOWN = 40
QUALITY = 85
ZOOMED_PX = 192
"""Pictures with a longest side below this are enlarged by a whole factor."""


def card(preview: Preview, shown: Shown) -> Html:
    """One sample."""
    asked = preview.asked[shown.source]
    facts = [
        shown.source if len(preview.asked) > 1 else "",
        f"id:{shown.sample}",
        shown.labels.source,
        f"stored {size(shown.width_px, shown.height_px)}",
        f"bucket {size(*shown.bucket)}" if shown.bucket else "no bucket",
        times(shown.per_epoch),
    ]
    body = [_picture(shown), element("div", _labels(preview, shown, asked), *_draws(preview, shown), class_="told")]
    return element(
        "article",
        element("h2", element("bdi", shown.key)),
        element("p", " · ".join(filter(None, facts)), class_="facts"),
        element("div", *body, class_="columns"),
        class_="card",
    )


def badge(form: str, share: float | None = None) -> Html:
    """The name of a form, with its share where there is one."""
    shares = [] if share is None else [" ", element("b", percent(share))]
    return element("span", FORM_NAMES[form], *shares, class_=f"badge {form}")


def _picture(shown: Shown) -> Html:
    learned = shown.learned
    if not learned:
        return element("figure", element("p", f"Not trained: {shown.unused}.", class_="unused"))
    first, picture = learned.draws[0], learned.picture
    zoom = max(1, ZOOMED_PX // max(picture.size))
    mirrored = ", mirrored" if first.mirrored else ""
    return element(
        "figure",
        element(
            "img",
            src=_data_uri(picture),
            alt=f"{shown.key} as epoch 0 trains it",
            width=str(picture.width * zoom),
            height=str(picture.height * zoom),
            class_="zoomed" if zoom > 1 else "",
        ),
        element("figcaption", f"as in epoch 0{mirrored}: {fitted(shown.width_px, first.crop)}"),
    )


def _data_uri(picture: Image.Image) -> str:
    encoded = io.BytesIO()
    picture.save(encoded, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _labels(preview: Preview, shown: Shown, asked: Asked) -> Html:
    """What is known of a sample beside its draws."""
    texts, labels = [tag.text for tag in shown.written], shown.labels
    rows: dict[str, Html | str] = {}
    if list(labels.tags) == texts:
        rows["stored tags"] = _written(shown.written)
    else:
        rows["stored tags"] = together(_spaced(element("bdi", tag, class_="tag raw") for tag in labels.tags))
        rows["as written"] = _written(shown.written)
    rows["captions"] = _captions(labels.captions, labels.caption_names)
    if shown.learned:
        if shown.learned.counts is not None:
            rows["mask"] = counted(shown.learned.counts)
        rows["forms"] = _forms(shown.learned, asked)
        rows["mirrored"] = _mirrored(shown.learned, preview.config.data.flip)
    told = ([element("dt", name), element("dd", row or element("i", "none"))] for name, row in rows.items())
    return element("dl", *(part for pair in told for part in pair), class_="labels")


def _written(tags: Iterable[Tag]) -> Html:
    """Tags in their order, each with its place."""
    return together(
        _spaced(
            element("bdi", tag.text, class_=_classes(tag), data_place=str(place)) for place, tag in enumerate(tags, 1)
        )
    )


def _classes(tag: Tag | None) -> str:
    important, protected = (tag.important, tag.protected) if tag else (False, False)
    return f"tag{' important' if important else ''}{' protected' if protected else ''}"


def _captions(captions: Iterable[str], names: tuple[str, ...]) -> Html:
    found = []
    for number, caption in enumerate(captions):
        name = [element("small", names[number]), " "] if names else []
        found.append(element("p", *name, element("bdi", caption), class_="caption", dir="auto"))
    return together(found)


def _forms(learned: Learned, asked: Asked) -> Html:
    in_effect = _spaced(badge(form, share) for form, share in learned.forms.items())
    if learned.forms == asked.forms:
        return together(in_effect)
    return together([*in_effect, element("small", f" where {forms_in_words(asked.forms)} are asked for")])


def _mirrored(learned: Learned, flip: float) -> Html:
    if learned.no_flip:
        return together(["never, because of the pattern ", element("code", learned.no_flip)])
    return together([f"{percent(flip)} of draws" if flip else "never, as data.flip is 0"])


def _draws(preview: Preview, shown: Shown) -> Iterator[Html]:
    """All draws, of which those behind the first few unfold."""
    if not shown.learned:
        return
    rows = [_draw(preview, shown, drawn) for drawn in shown.learned.draws]
    yield element("ol", *rows[:OPEN_DRAWS], class_="draws")
    if more := rows[OPEN_DRAWS:]:
        summary = element("summary", f"{len(more)} more draws" if len(more) > 1 else "1 more draw")
        yield element("details", summary, element("ol", *more, class_="draws"))


def _draw(preview: Preview, shown: Shown, drawn: Drawn) -> Html:
    prompt, limit = drawn.prompt, preview.config.model.max_tokens
    separator = preview.asked[shown.source].captions.tags.separator
    told = [badge(prompt.form)]
    if drawn.mirrored:
        told.append(element("span", "⇋ mirrored"))
    if preview.config.data.random_crop and cut_away(drawn.crop):
        told.append(element("span", f"cut at {drawn.crop.left}, {drawn.crop.top}"))
    bar = element("span", class_="bar", style=f"--part:{min(1.0, prompt.tokens / limit):.1%}", aria_hidden="true")
    told.append(element("span", bar, f"{prompt.tokens} of {limit} tokens", class_="tokens"))
    return element(
        "li",
        element("span", f"epoch {drawn.epoch}", class_="epoch"),
        element("div", _prompt(shown, drawn, separator), *_gone(drawn), class_="said"),
        element("div", *told, class_="meta"),
        class_="draw",
    )


def _prompt(shown: Shown, drawn: Drawn, separator: str) -> Html:
    """The text that is trained, to the letter, with its tags marked."""
    if not drawn.prompt.text:
        return element("p", EMPTY, class_="prompt empty")
    return element("p", *_with_tags(shown, drawn.prompt, separator), class_="prompt", dir="auto")


def _with_tags(shown: Shown, prompt: Prompt, separator: str) -> Iterator[str]:
    listed = separator.join(prompt.tags)
    if not listed or listed not in prompt.text:
        yield prompt.text
        return
    parted = prompt.text.rpartition if prompt.form == "caption_tags" else prompt.text.partition
    before, _, after = parted(listed)
    by_text = {tag.text: tag for tag in shown.written}
    arrows = moved(prompt.tags, [tag.text for tag in shown.written])
    yield before
    sign = separator.rstrip()
    for tag, arrow, follows in zip(prompt.tags, arrows, [*prompt.tags[1:], ""], strict=True):
        chip = element("bdi", tag, class_=_classes(by_text.get(tag)), data_moved=arrow)
        # No line begins with a comma.
        yield element("span", chip, sign, class_="whole") if follows else chip
        yield separator[len(sign) :] if follows else ""
    yield after


def _gone(drawn: Drawn) -> Iterator[Html]:
    """What a draw left out, a line for each reason."""
    groups = gone_by_reason(drawn.prompt)
    for reason, texts in groups.items():
        kept, more = at_most(texts, GONE_SHOWN)
        words = _spaced(element("del", element("bdi", text)) for text in kept)
        yield element("p", element("span", f"{reason}:", class_="reason"), " ", *words, f" {more}", class_="gone")


def _spaced(parts: Iterable[Html]) -> Iterator[str]:
    """Parts with a space behind each, where lines may break."""
    for part in parts:
        yield part
        yield " "
