"""Prompts of 50 tags with every policy on, by one core, and their share of what decoding a picture costs."""

import csv
import gzip
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from transformers import CLIPTokenizer

from data_tools.demo.tiny_model import train_tokenizer
from finetune.data.hashing import CounterRng
from finetune.data.images import load
from finetune.data.labels import Labels
from finetune.data.plan import Draw
from finetune.data.prompts.config import (
    AliasConfig,
    CaptionConfig,
    CaptionsConfig,
    CategoryConfig,
    ImplicationConfig,
    MixConfig,
    SpellingConfig,
    TagsConfig,
)
from finetune.data.prompts.length import TokenLimit
from finetune.data.prompts.prompter import Prompter
from finetune.model.text import PromptTokenizer
from tests.bench.figure import Figure
from tests.bench.pictures import centre_crop, jpeg, pictures
from tests.bench.timing import cost

TAGS, SAMPLES, VOCABULARY = 50, 1000, 20_000
ROUNDS = 7
MAX_TOKENS = 525
WHITE = (255, 255, 255)
SEED = 3


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """Draws per second of the same samples, epoch after epoch, with what a flip asks for; the first epochs, in which
    tags and words are seen for the first time, are not counted.

    Args:
        work: where made-up lists go.
        shared: the folder of real tag lists; None for made-up ones.
    """
    lists = shared / "tags" if shared else _made_up(work / "tags")
    names = _names(lists)
    samples = [_sample(names, number) for number in range(SAMPLES)]
    began = time.perf_counter()
    prompter = Prompter(every_policy(lists), SEED)
    opened_s = time.perf_counter() - began
    tokenizer = _tokenizer(work, shared, names)
    limit = TokenLimit(tokenizer.count, tokenizer.max_tokens)

    def epoch(number: int) -> Callable[[], None]:
        def draw_all() -> None:
            for sample, labels in enumerate(samples):
                prompter.draw(labels, "10_fox/1.jpg", Draw(sample, number, 0), number * 1000, limit)
                prompter.forbids_flip(labels)

        return draw_all

    cpu_s = [cost(epoch(number)).cpu_s / SAMPLES for number in range(3 * ROUNDS)][2 * ROUNDS :]
    kind = "e621's lists, CLIP's tokenizer" if shared else "made-up lists"
    yield Figure(
        "prompts.per_s",
        1 / median(cpu_s),
        "1/s",
        f"{TAGS} tags of {VOCABULARY:,}, every policy on, {kind}; a CPU-second, median of {ROUNDS} rounds of "
        f"{SAMPLES:,}: {1 / max(cpu_s):,.0f} to {1 / min(cpu_s):,.0f}; the lists were read in {opened_s:.2f} s",
    )
    decode_s = _decode_s(shared)
    yield Figure(
        "prompts.share_of_decoding",
        median(cpu_s) / decode_s,
        "ratio",
        f"CPU time of a prompt / that of a JPEG to 768² pixels ({decode_s * 1000:.1f} ms)",
    )


def every_policy(lists: Path) -> CaptionsConfig:
    """All that a recipe can ask for at once."""
    return CaptionsConfig(
        drop=0.1,
        mix=MixConfig(0.7, 0.2, 0.05, 0.05),
        wildcards=True,
        name="sks",
        templates=["[name], [filewords]", "[filewords], best quality"],
        prefix="photo of",
        suffix="in colour",
        no_flip=["text on *", "written", "speech bubble", "asymmetrical*", "sequence", "before and after", "re:^left"],
        tags=TagsConfig(
            aliases=AliasConfig([str(lists / "e621_tag_aliases-2025-05-01.csv.gz")]),
            categories=CategoryConfig(str(lists / "e621.csv"), "e621"),
            spelling=SpellingConfig("spaces", "escape", "lower"),
            keep_first=1,
            keep_separator="|||",
            important=["solo", "category:character"],
            drop=0.15,
            sparse=0.05,
            category_drop={"artist": 0.3, "meta": 0.9},
            never_drop=["male", "female"],
            remove=["rating:*"],
            implications=ImplicationConfig([str(lists / "e621_tag_implications-2025-05-01.csv.gz")]),
            warmup_steps=1000,
            split=";",
            group_separator=";;;",
        ),
        caption=CaptionConfig(weights={"1": 2.0}, lines="random", shuffle_sentences=True),
    )


def _sample(names: list[str], number: int) -> Labels:
    """50 different tags, frequent ones more often, and two captions."""
    rng = CounterRng(SEED, number)
    tags: dict[str, None] = {}
    while len(tags) < TAGS:
        tags[names[int(len(names) ** rng.uniform()) - 1]] = None
    return Labels(tuple(tags), ("A dog sits. It looks at a {big|small} tree!", "a dog\nbelow a tree with text on it"))


def _names(lists: Path) -> list[str]:
    with (lists / "e621.csv").open(encoding="utf-8") as file:
        return [row[0] for row in csv.reader(file) if row[0]][:VOCABULARY]


def _made_up(folder: Path) -> Path:
    """Lists of as many tags, each of which implies another."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"tag_{number}" for number in range(VOCABULARY)]
    (folder / "e621.csv").write_text("".join(f"{name},{i % 6},1,\n" for i, name in enumerate(names)), encoding="utf-8")
    header = "id,antecedent_name,consequent_name,created_at,status\n"
    for kind, pairs in (("implications", zip(names[1:], names, strict=False)), ("aliases", [("old", names[0])])):
        lines = [f"{i},{first},{second},,active\n" for i, (first, second) in enumerate(pairs)]
        with gzip.open(folder / f"e621_tag_{kind}-2025-05-01.csv.gz", "wt", encoding="utf-8") as file:
            file.writelines([header, *lines])
    return folder


def _tokenizer(work: Path, shared: Path | None, names: list[str]) -> PromptTokenizer:
    if shared:
        clip = CLIPTokenizer.from_pretrained(shared / "clip_tokenizer", model_max_length=77)
        return PromptTokenizer([clip], MAX_TOKENS)
    return PromptTokenizer([train_tokenizer(names, work / "tokenizer")], MAX_TOKENS)


def _decode_s(shared: Path | None) -> float:
    """CPU seconds of decoding a picture, as training does."""
    seconds = []
    for picture in pictures(shared):
        data, crop = jpeg(picture), centre_crop(*picture.size)
        seconds.append(
            median(cost(lambda data=data, crop=crop: load(data, crop, False, WHITE)).cpu_s for _ in range(3))
        )
    return median(seconds)
