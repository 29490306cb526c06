"""From a sample's tags and captions to its prompt: small functions of (what there is, the recipe, the choices)."""

from finetune.data.config import CaptionsConfig
from finetune.data.hashing import CounterRng
from finetune.data.labels import Labels


def make_prompt(labels: Labels, config: CaptionsConfig, rng: CounterRng) -> str:
    """The prompt of one draw; empty where the recipe drops it or the sample has neither tags nor caption."""
    if rng.uniform() < config.drop:
        return ""
    kind = choose_kind(labels, config, rng.uniform())
    if kind == "tags":
        return config.separator.join(arrange_tags(labels.tags, config, rng))
    if kind == "caption":
        return labels.captions[rng.integer(len(labels.captions))]
    return ""


def choose_kind(labels: Labels, config: CaptionsConfig, choice: float) -> str | None:
    """ "tags" or "caption" by weight among what the sample has; the other where only one of them is there.

    A kind of weight 0 is never used, even if it is all there is.
    """
    tags = config.tags_weight if labels.tags else 0.0
    captions = config.caption_weight if labels.captions else 0.0
    if tags + captions == 0.0:
        return None
    return "tags" if choice * (tags + captions) < tags else "caption"


def arrange_tags(tags: tuple[str, ...], config: CaptionsConfig, rng: CounterRng) -> list[str]:
    """Leave tags out, each by itself, and shuffle the rest."""
    kept = [tag for tag, u in zip(tags, rng.uniforms(len(tags)), strict=True) if u >= config.tag_drop]
    return rng.shuffled(kept) if config.shuffle_tags else kept
