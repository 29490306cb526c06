"""The page shows what is there, as text, and is whole HTML."""

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.preview.draws import Preview, collect
from data_tools.preview.markup import VOID, Html, element
from data_tools.preview.page import page
from finetune.data.plan import Draw
from tests.data_tools.preview.conftest import Look, Open, write_shard

NASTY_CAPTION = "<script>alert(1)</script>"
NASTY_TAG = '"><img src=x onerror=alert(1)>'
PLAIN = ("captions.mix={tags: 1, caption: 0}", "captions.tags.shuffle=false")


class Element:
    """An element with what it holds."""

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name, self.attributes = name, attributes
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def every(self, name: str = "", class_: str = "") -> "Iterator[Element]":
        """All elements below, of a name and with a class."""
        for child in self.children:
            if isinstance(child, Element):
                if name in ("", child.name) and (not class_ or class_ in child.attributes.get("class", "").split()):
                    yield child
                yield from child.every(name, class_)


class Tree(HTMLParser):
    """Reads a page, and insists that every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        found = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(found)
        if tag not in VOID:
            self._open.append(found)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def read(preview: Preview) -> Element:
    return Tree(page(preview)).root


def texts(found: Iterator[Element]) -> list[str]:
    return [one.text for one in found]


def test_elements_escape_what_is_no_markup() -> None:
    assert element("p", "a < b", element("b", "&"), class_='"') == '<p class="&quot;">a &lt; b<b>&amp;</b></p>'
    assert element("img", src="", alt="", data_moved="↑3") == '<img alt="" data-moved="↑3">'
    assert element("p", Html("<i></i>")) == "<p><i></i></p>"


def test_what_is_shown_stays_text(look: Look) -> None:
    labels = [{"tags": {NASTY_TAG: [NASTY_TAG, "dog"]}, "caption": {NASTY_CAPTION: NASTY_CAPTION}, "source": NASTY_TAG}]
    settings = ("captions.tags.implications.pairs=[[dog, '\"><img src=x onerror=alert(1)>']]", "captions.name='<b>'")
    mix = ("captions.mix={tags: 1, caption: 1}", "captions.tags.shuffle=false")
    seen = look(labels, *mix, *settings, "captions.no_flip=['*script*']", "data.flip=1")
    root = read(seen)
    assert not list(root.every("script"))
    assert len(list(root.every("img"))) == 1
    for found in root.every():
        assert not any(name.startswith("on") for name in found.attributes)
        assert found.name not in {"iframe", "object", "embed", "link", "base", "form", "a"}
    assert NASTY_TAG in texts(root.every("bdi"))
    assert NASTY_CAPTION in texts(root.every("bdi"))
    assert f"<b>, {NASTY_CAPTION}" in texts(root.every("p", "prompt"))
    assert f"<b>, {NASTY_TAG}, dog" in texts(root.every("p", "prompt"))
    assert NASTY_TAG in texts(root.every("del"))
    assert texts(root.every("code")) == ["*script*"]


def test_a_page_needs_nothing_from_elsewhere(look: Look) -> None:
    whole = page(look([{"tags": ["dog"]}] * 3, draws=2))
    assert "http" not in whole.replace("http-equiv", "")
    assert "url(" not in whole
    assert "@import" not in whole
    for found in Tree(whole).root.every():
        assert "href" not in found.attributes
        assert found.attributes.get("src", "data:").startswith("data:image/webp;base64,") or found.name != "img"


def test_the_prompts_are_those_of_the_preparer(opened: Open) -> None:
    labels = [{"tags": [f"tag {n}" for n in range(9)], "caption": f"a  picture,\n tag {i}"} for i in range(6)]
    mix = "captions.mix={tags: 1, caption: 1, tags_caption: 1, caption_tags: 1}"
    frame = ("captions.name=tag", "captions.prefix=in front", "captions.suffix='behind, tag 3'")
    config, found = opened(labels, mix, *frame, "captions.drop=0.1", "captions.tags.drop=0.3", "model.max_tokens=75")
    seen = collect("demo", config, found, draws=12)
    told = list(read(seen).every("article"))
    assert len(told) == len(seen.samples) == 6
    for article, shown in zip(told, seen.samples, strict=True):
        record = found.sources.read(shown.sample, 0, whole_shard=False)
        first = found.plan.first_step
        prompts = [found.preparer.prompt(record, Draw(shown.sample, e, 0), first(e)) for e in range(12)]
        assert texts(article.every("p", "prompt")) == [prompt.text or "(empty)" for prompt in prompts]
        for prompt, draw in zip(prompts, article.every("li", "draw"), strict=True):
            (said,) = draw.every("p", "prompt")
            assert texts(said.every("bdi", "tag")) == list(prompt.tags)
            assert next(draw.every("span", "tokens")).text == f"{prompt.tokens} of 75 tokens"
            assert ("emptied" in next(draw.every("span", "badge")).text) == (not prompt.text)


def test_a_tag_that_is_gone_has_its_reason(look: Look) -> None:
    implications = "captions.tags.implications={pairs: [[big dog, dog]], drop: [1.0, 1.0]}"
    seen = look([{"tags": ["sky", "dog", "big dog"]}], *PLAIN, implications, "captions.tags.important=[big*]", draws=1)
    (draw,) = read(seen).every("li", "draw")
    (gone,) = draw.every("p", "gone")
    assert gone.text.split() == ["implied", "by", "big", "dog:", "dog"]
    assert texts(gone.every("del")) == ["dog"]
    big, sky = draw.every("bdi", "tag")
    assert (big.text, big.attributes["data-moved"], big.attributes["class"]) == ("big dog", "↑3", "tag important")
    assert (sky.text, sky.attributes["data-moved"], sky.attributes["class"]) == ("sky", "↓1", "tag")


def test_a_thumbnail_is_the_crop_that_is_trained(opened: Open) -> None:
    config, found = opened([{"tags": ["dog"]}] * 3, "data.random_crop=true", "data.flip=1.0")
    seen = collect("demo", config, found, draws=1)
    for micro_batch in (found.plan.step(step)[0] for step in range(3)):
        (sample,) = found.preparer.prepare(0, micro_batch, {}, [])
        number = [shown.sample for shown in seen.samples].index(micro_batch.draws[0].sample)
        image = list(read(seen).every("img"))[number].attributes
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert picture.size == (sample.pixels.shape[1], sample.pixels.shape[0])
        assert int(image["width"]) / int(image["height"]) == picture.width / picture.height
        # Noise is the worst that can be done to WebP; another crop, or one that is not mirrored, would be unlike it.
        shown, trained = (np.asarray(p.convert("L"), dtype=float) for p in (picture, Image.fromarray(sample.pixels)))
        assert np.corrcoef(shown.ravel(), trained.ravel())[0, 1] > 0.9


def test_why_a_sample_is_never_mirrored(look: Look) -> None:
    labels: list[dict[str, Any]] = [{"tags": ["text on sign"]}, {"caption": "facing left"}, {"tags": ["dog"]}]
    flipped = look(labels, "data.flip=0.25", "captions.no_flip=[text*, left]")
    told = [texts(article.every("dd"))[-1] for article in read(flipped).every("article")]
    assert told == ["never, because of the pattern text*", "never, because of the pattern left", "25% of draws"]
    assert read(look(labels[2:], "data.flip=0")).text.count("never, as data.flip is 0") == 1


def test_what_is_asked_for_and_what_is_in_effect(look: Look) -> None:
    seen = look(
        [{"tags": ["dog"]}, {"tags": ["dog"], "caption": "a dog"}], "captions.mix={tags: 1, caption: 3}", draws=1
    )
    alone, both = read(seen).every("article")
    assert "tags 100%  where tags 25% · caption 75% are asked for" in alone.text
    assert "asked for" not in both.text
    assert "tags 25% caption 75%" in both.text


def test_the_policy_is_told_in_words_and_as_settings(look: Look) -> None:
    settings = ("captions.tags.never_drop=[dog]", "captions.tags.warmup_steps=100", "captions.tags.sparse=0.1")
    (policy,) = read(look([{"tags": ["dog"]}], *settings, draws=1)).every("section", "policy")
    assert "never droppeddog" in policy.text
    assert "from 1 to all tags over 100 steps" in policy.text
    assert "75% in 10% of prompts" in policy.text
    assert "captions:\n  drop: 0\n" in next(policy.every("pre")).text.replace("0.0", "0")


def test_a_sample_that_is_not_trained_says_why_in_place_of_its_picture(tmp_path: Path, look: Look) -> None:
    shards = write_shard(tmp_path / "shards", [{"tags": ["dog"]}, {}], [(40, 12), (96, 96)])
    (article,) = read(look(shards, "data.buckets.min_image_px=50", keys=["000"])).every("article")
    (figure,) = article.every("figure")
    assert figure.text == "Not trained: shorter side below min_image_px (50)."
    assert not list(article.every("li"))
    assert "stored 40×12 · no bucket" in article.text


def test_a_page_of_large_pictures_stays_small(tmp_path: Path, look: Look) -> None:
    tags = [f"a tag of some words {n}" for n in range(40)]
    shards = write_shard(tmp_path / "large", [{"tags": tags, "caption": "a picture " * 40}] * 12, [(600, 600)] * 12)
    sizes = ["data.buckets.resolution_px=512", "data.buckets.max_side_px=768", "data.buckets.step_px=64"]
    whole = page(look(shards, *sizes, "captions.tags.drop=0.5", "captions.mix={tags_caption: 1}"))
    assert len(re.findall("<li", whole)) == 12 * 20
    assert len(whole.encode()) < 2_000_000
