"""Sampling pictures with the schedule and the text encoding that are being trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from finetune.checkpoint.export import Pipeline
from finetune.model.text import Conditioning, PromptEncoder, PromptTokenizer
from finetune.monitor.samples.config import Picture


class _Kind(NamedTuple):
    """What pictures that are sampled at a time have in common."""

    width_px: int
    height_px: int
    steps: int
    guidance: float
    guidance_rescale: float
    chunks: int
    """Of the prompt or its negative, whichever is longer: a prompt that was padded to others would be another one."""


@dataclass(frozen=True)
class Sampler:
    """A model that pictures are sampled with."""

    pipeline: Pipeline
    tokenizer: PromptTokenizer
    encoder: PromptEncoder
    autocast: torch.autocast
    """The precision of its forward passes."""

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it the model is in evaluation mode, and afterwards as it was."""
        parts = [self.pipeline.unet, *self.encoder.encoders]
        training = [part.training for part in parts]
        try:
            for part in parts:
                part.eval()
            yield
        finally:
            for part, was_training in zip(parts, training, strict=True):
                part.train(was_training)

    def batches(self, pictures: Sequence[Picture], at_most: int, world: int = 1) -> list[list[int]]:
        """The places of pictures that are sampled at a time, the costliest batches first, so that every `world`-th of
        them is a fair share.

        Args:
            at_most: pictures of a batch.
            world: ranks that share the batches; none of these holds more of its kind than a rank's fair share.
        """
        kinds: dict[_Kind, list[int]] = {}
        for place, picture in enumerate(pictures):
            kinds.setdefault(self._kind(picture), []).append(place)
        found: dict[tuple[int, ...], int] = {}
        for kind, places in kinds.items():
            size = min(at_most, -(-len(places) // world))
            for first in range(0, len(places), size):
                batch = tuple(places[first : first + size])
                found[batch] = len(batch) * kind.width_px * kind.height_px * kind.steps
        return [list(batch) for batch in sorted(found, key=found.__getitem__, reverse=True)]

    @torch.no_grad()
    def sample(self, pictures: Sequence[Picture]) -> list[Image.Image]:
        """Sample one batch; each picture starts from the noise of its own seed."""
        prompts = [picture.prompt for picture in pictures]
        texts = [*(prompt.text for prompt in prompts), *(prompt.negative for prompt in prompts)]
        chunks = self.tokenizer(texts).to(self.pipeline.device)
        kind = self._kind(pictures[0])
        with self.autocast:
            latents = self.pipeline(
                **_embeddings(self.encoder(*chunks), len(prompts)),
                num_inference_steps=kind.steps,
                guidance_scale=kind.guidance,
                guidance_rescale=kind.guidance_rescale,
                width=kind.width_px,
                height=kind.height_px,
                generator=[torch.Generator().manual_seed(prompt.seed) for prompt in prompts],
                output_type="latent",
            ).images
        return self._decoded(latents)

    def _kind(self, picture: Picture) -> _Kind:
        chunks = self.tokenizer([picture.prompt.text, picture.prompt.negative]).chunk_rows.shape[1]
        return _Kind(
            picture.width_px, picture.height_px, picture.steps, picture.guidance, picture.guidance_rescale, chunks
        )

    def _decoded(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of scaled latents [B, C, h, w], decoded in the VAE's own precision: SDXL's overflows in fp16."""
        vae = self.pipeline.vae
        decoded = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        pictures: list[Image.Image] = self.pipeline.image_processor.postprocess(decoded)
        return pictures


def _embeddings(conditioning: Conditioning, prompts: int) -> dict[str, Tensor]:
    """The pipeline's arguments for this many prompts, which negative ones follow."""
    states, pooled = conditioning
    embeddings = {"prompt_embeds": states[:prompts], "negative_prompt_embeds": states[prompts:]}
    if pooled is not None:
        embeddings |= {"pooled_prompt_embeds": pooled[:prompts], "negative_pooled_prompt_embeds": pooled[prompts:]}
    return embeddings
