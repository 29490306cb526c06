"""A recipe's policy of captions at a glance: what is switched on, in a few words each."""

from collections.abc import Iterable

from data_tools.preview.reading import percent
from finetune.config import Config
from finetune.data.prompts.config import CaptionsConfig, TagsConfig


def glance(config: Config, captions: CaptionsConfig) -> dict[str, str]:
    """What is done to the samples of a source, by what it is done to.

    Args:
        captions: of the source.
    """
    told = {**_of_prompts(captions), **_of_tags(captions.tags), **_of_captions(captions)}
    told |= {
        "pictures": _listed(
            [
                f"mirrored {percent(config.data.flip)}" if config.data.flip else "never mirrored",
                "cut at a random place" if config.data.random_crop else "cut at the centre",
            ]
        ),
        "mask": {"none": "", "alpha": "what is opaque counts", "member": "a picture beside it says what counts"}[
            config.data.mask
        ],
        "never mirrored": _listed(captions.no_flip if config.data.flip else ()),
        "limit": f"{config.model.max_tokens} tokens",
    }
    return {what: words for what, words in told.items() if words}


def _of_prompts(captions: CaptionsConfig) -> dict[str, str]:
    every = captions.drop_every_epochs
    return {
        "emptied": _listed(
            [
                f"{percent(captions.drop)} of prompts" if captions.drop else "",
                f"all of one epoch in {every}" if every else "",
            ]
        ),
        "name": captions.name,
        "templates": f"{len(captions.templates)}, one a draw" if captions.templates else "",
        "in front and behind": _listed([captions.prefix, captions.suffix]),
        "instead of neither": captions.missing,
        "wildcards": "one option of {a|b} a draw" if captions.wildcards else "",
    }


def _of_tags(tags: TagsConfig) -> dict[str, str]:
    chances = [f"{percent(tags.drop)} of tags"] if tags.drop else []
    chances += [f"{percent(tags.sparse_drop)} in {percent(tags.sparse)} of prompts"] if tags.sparse else []
    chances += [f"{category} {percent(share)}" for category, share in tags.category_drop.items()]
    implications, warmup = tags.implications, tags.warmup_steps
    lowest, highest = map(percent, implications.drop)
    return {
        "order of tags": "shuffled" if tags.shuffle else "as stored",
        "kept in place": _listed(
            [
                f"the first {tags.keep_first}" if tags.keep_first else "",
                f"what {tags.keep_separator} parts off" if tags.keep_separator else "",
            ]
        ),
        "important": _listed(tags.important),
        "dropped": _listed(chances),
        "never dropped": _listed(tags.never_drop),
        "removed": _listed(tags.remove),
        "implied tags": f"left out {lowest} to {highest}" if implications.pairs or implications.files else "",
        "warm-up": f"from {tags.warmup_min} to all tags over {warmup:,} steps" if warmup else "",
    }


def _of_captions(captions: CaptionsConfig) -> dict[str, str]:
    caption = captions.caption
    return {
        "captions": _listed(
            [
                *(f"{name} ×{weight:g}" for name, weight in caption.weights.items()),
                {"all": "", "first": "first line", "random": "a random line"}[caption.lines],
                "sentences shuffled" if caption.shuffle_sentences else "",
            ]
        )
    }


def _listed(words: Iterable[str]) -> str:
    return ", ".join(filter(None, words))
