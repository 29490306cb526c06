"""How often a source's prompts take which form, from what the index knows of labels."""

from dataclasses import dataclass

from data_tools.stats.sources import OpenSource
from finetune.data.prompts.config import MixConfig
from finetune.data.prompts.forms import average_mix, effective_mix

FORM_NAMES = {
    "tags": "tags",
    "caption": "caption",
    "tags_caption": "tags, caption",
    "caption_tags": "caption, tags",
    "missing": "neither",
    "emptied": "emptied",
}
"""What the forms of prompts are called, in the order in which they are shown."""


@dataclass(frozen=True)
class FormFigures:
    """The forms of one source's prompts, before any are emptied."""

    source: str
    asked: dict[str, float]
    """What `captions.mix` says, as shares."""
    in_effect: dict[str, float]
    """On average over the draws of the samples that are trained, some of which lack tags or captions."""


def forms_of(source: OpenSource, mix: MixConfig) -> FormFigures:
    """The forms of a source's prompts, given its `captions.mix`."""
    trained = source.trained()
    have_tags, have_captions = (source.stored.have(kind, 0)[trained] for kind in ("tags", "captions"))
    in_effect = average_mix(mix, have_tags, have_captions, source.stored.index.repeats[trained])
    return FormFigures(source.stored.name, effective_mix(mix, True, True), in_effect)
