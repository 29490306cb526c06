"""What becomes of a sample's captions: one is drawn, and of it a line, or its sentences in another order."""

from finetune.data.hashing import CounterRng, weighted
from finetune.data.labels import Labels
from finetune.data.prompts.choices import Choice
from finetune.data.prompts.config import CaptionConfig
from finetune.data.prompts.writing import clean, resolve_wildcards, shuffle_sentences


class CaptionPolicy:
    """What one recipe makes of captions."""

    def __init__(self, config: CaptionConfig, *, wildcards: bool) -> None:
        self._config = config
        self._wildcards = wildcards

    def weights(self, labels: Labels) -> list[float]:
        """Of every caption; one of control characters alone is none."""
        names = labels.caption_names or tuple(str(number) for number in range(1, len(labels.captions) + 1))
        weights = [self._config.weights.get(name, 1.0) for name in names]
        readable = (text.isprintable() or clean(text) for text in labels.captions)
        return [weight if can_be_read else 0.0 for weight, can_be_read in zip(weights, readable, strict=True)]

    def draw(self, labels: Labels, weights: list[float], rng: CounterRng) -> str:
        """A caption of a sample, as one draw has it.

        Args:
            weights: of its captions, not all 0.
        """
        caption = labels.captions[weighted(rng.at(Choice.CAPTION), weights)]
        lines = [line for line in caption.splitlines() if line.strip()]
        if len(lines) > 1 and self._config.lines != "all":
            caption = lines[int(rng.at(Choice.LINE) * len(lines)) if self._config.lines == "random" else 0]
        if self._wildcards:
            caption = resolve_wildcards(caption, rng.fork(Choice.CAPTION_WILDCARDS))
        caption = clean(caption)
        if self._config.shuffle_sentences:
            caption = shuffle_sentences(caption, rng.fork(Choice.SENTENCES))
        return caption
