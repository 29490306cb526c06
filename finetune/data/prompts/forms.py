"""Which forms prompts take."""

from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.prompts.config import MixConfig

EMPTIED = "emptied"
"""Form of the prompts that the recipe empties."""
MISSING = "missing"
"""Form of the prompts of samples that have nothing of what `captions.mix` asks for; the recipe's word for them is their
caption."""
FORMS = {
    "tags": ("tags",),
    "caption": ("caption",),
    "tags_caption": ("tags", "caption"),
    "caption_tags": ("caption", "tags"),
    MISSING: ("caption",),
}
"""The parts of each other form, in order."""

Bools = npt.NDArray[np.bool_]


def effective_mix(mix: MixConfig, has_tags: bool, has_caption: bool) -> dict[str, float]:
    """The share of each form among the prompts of samples that have tags, captions, both or nothing."""
    there = {"tags": has_tags, "caption": has_caption}
    weights: dict[str, float] = {}
    for form, weight in asdict(mix).items():
        parts = [part for part in FORMS[form] if there[part]]
        if parts and weight:
            made = form if len(parts) == len(FORMS[form]) else parts[0]
            weights[made] = weights.get(made, 0.0) + weight
    total = sum(weights.values())
    return {form: weight / total for form, weight in weights.items()} or {MISSING: 1.0}


def average_mix(mix: MixConfig, have_tags: Bools, have_caption: Bools, draws: npt.NDArray[Any]) -> dict[str, float]:
    """The share of each form among the prompts of many samples.

    Args:
        have_tags: which of them have tags: bool [samples], as `have_caption`.
        draws: how often each is drawn, next to the others: [samples].
    """
    total = max(int(draws.sum()), 1)
    shares: dict[str, float] = {}
    for has_tags, has_caption in product((True, False), repeat=2):
        of_all = int(draws[(have_tags == has_tags) & (have_caption == has_caption)].sum()) / total
        for form, share in effective_mix(mix, has_tags, has_caption).items() if of_all else ():
            shares[form] = shares.get(form, 0.0) + share * of_all
    return shares
