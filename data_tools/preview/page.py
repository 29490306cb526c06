"""The preview as one page that needs nothing else: no scripts, no fonts, no pictures from elsewhere."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from data_tools.preview.cards import badge, card
from data_tools.preview.draws import Asked, Preview
from data_tools.preview.glance import glance
from data_tools.preview.markup import Html, element, together
from finetune.config import resolved

STYLE = Path(__file__).with_name("page.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A browser that knows it runs no script and loads nothing, whatever the page holds."""


def page(preview: Preview) -> str:
    """The whole document."""
    samples = [card(preview, shown) for shown in preview.samples]
    body = element("body", element("main", _header(preview), *_policies(preview), _legend(), *samples))
    return f"<!DOCTYPE html>\n{element('html', _head(preview), body, lang='en')}\n"


def _head(preview: Preview) -> Html:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{preview.name}: prompts and crops"),
        element("style", Html(STYLE.read_text(encoding="utf-8"))),
    )


def _header(preview: Preview) -> Html:
    trained = sum(asked.trained for asked in preview.asked.values())
    told = (
        f"Samples shown: {len(preview.samples)}; trained in all: {trained:,}. Each has its crop, and the "
        "prompt of its first draw in every epoch, as a run that begins now would have them."
    )
    over = element("p", "prompts and crops", class_="over")
    return element("header", over, element("h1", preview.name), element("p", told))


def _policies(preview: Preview) -> Iterator[Html]:
    """What is asked for in every source that is shown."""
    shown = {sample.source for sample in preview.samples}
    for asked in preview.asked.values():
        if asked.source in shown:
            yield _policy(preview, asked, named=len(preview.asked) > 1)


def _policy(preview: Preview, asked: Asked, *, named: bool) -> Html:
    heading = f"Captions of {asked.source}" if named else "Captions"
    forms = together(part for form, share in asked.forms.items() for part in (badge(form, share), " "))
    rows = {"forms": forms, **glance(preview.config, asked.captions)}
    told = (element("div", element("dt", what), element("dd", words)) for what, words in rows.items())
    plain = resolved(replace(preview.config, captions=asked.captions))["captions"]
    settings = element("pre", OmegaConf.to_yaml(OmegaConf.create({"captions": plain})))
    whole = element("details", element("summary", "all settings"), settings)
    return element("section", element("h2", heading), element("dl", *told, class_="glance"), whole, class_="policy")


def _legend() -> Html:
    """What the marks mean, in the marks."""
    marks = (
        (element("bdi", "tag", class_="tag", data_moved="↑3"), "stored as the third; further in front now"),
        (element("bdi", "tag", class_="tag", data_moved="↓1"), "stored as the first; further behind now"),
        (element("bdi", "tag", class_="tag important"), "important: comes first"),
        (element("bdi", "tag", class_="tag protected"), "never dropped"),
        (element("del", "tag"), "left out, for the reason in front of it"),
    )
    return element("p", *(element("span", mark, " ", words) for mark, words in marks), class_="legend")
