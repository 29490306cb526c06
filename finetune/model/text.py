"""Prompts beyond CLIP's 77 positions: cut into chunks of 75 tokens, encoded each by itself, joined again."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from finetune.data.batch import Chunks
from finetune.errors import UserError
from finetune.model.config import CHUNK_TOKENS, ModelConfig
from finetune.model.parts import has_part, load_part

TOKENIZERS = ("tokenizer", "tokenizer_2")


def load_tokenizers(config: ModelConfig) -> tuple[CLIPTokenizer, ...]:
    """A model's tokenizer, or SDXL's two, which read alike and pad differently.

    Raises:
        UserError: there is none, or one that does not pad, or two that do not read alike.
    """
    first, second = TOKENIZERS
    tokenizers = [_load_tokenizer(config, first)]
    if has_part(config, second):
        tokenizers.append(_load_tokenizer(config, second))
        if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
            raise UserError(
                f"model.path {config.path}: its two tokenizers have different vocabularies: use those of SDXL"
            )
    return tuple(tokenizers)


def _load_tokenizer(config: ModelConfig, name: str) -> CLIPTokenizer:
    tokenizer = load_part(CLIPTokenizer, config, name)
    # Where its files are missing, transformers makes one that knows nothing else.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(
            f"model.path {config.path} has no {name} that can be loaded: give a folder or hub id in diffusers' layout"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"model.path {config.path}: its {name} has no pad_token, without which diffusers cannot sample either: "
            "name the one that the model was trained with in tokenizer_config.json "
            "(<|endoftext|>; of SD2, and in SDXL's tokenizer_2, !)"
        )
    return tokenizer


class PromptTokenizer:
    """Tokens of a prompt in chunks of [BOS, up to 75 tokens, EOS, padding], padded as each text encoder was trained."""

    def __init__(self, tokenizers: Sequence[CLIPTokenizer], max_tokens: int, pad_chunks: str = "needed") -> None:
        self._tokenizer = tokenizers[0]
        self._pads = torch.tensor([tokenizer.pad_token_id for tokenizer in tokenizers])
        self.max_tokens = max_tokens
        self.max_chunks = max_tokens // CHUNK_TOKENS
        self._min_chunks = self.max_chunks if pad_chunks == "longest" else 1

    def __call__(self, prompts: Sequence[str]) -> Chunks:
        """The chunks of all prompts, as many as the longest one needs or always the most; shorter ones are filled up
        with the empty chunk, which stands behind all others.

        What a prompt has beyond `max_tokens` is cut.
        """
        return self._in_chunks([self._ids(prompt)[: self.max_tokens] for prompt in prompts])

    def count(self, text: str) -> int:
        """Tokens of a text, without those that begin and end it."""
        return len(self._ids(text))

    def longest(self, prompts: int) -> Chunks:
        """The most chunks that a micro-batch can hold, none of them shared."""
        return self._in_chunks([[self._tokenizer.eos_token_id] * self.max_tokens] * prompts)

    def _ids(self, text: str) -> list[int]:
        # Where a text writes <|endoftext|>, or the "!" with which OpenCLIP pads, it is words like others.
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        ids: list[int] = found["input_ids"]
        return ids

    def _in_chunks(self, prompts: Sequence[list[int]]) -> Chunks:
        own = [[ids[i : i + CHUNK_TOKENS] for i in range(0, max(len(ids), 1), CHUNK_TOKENS)] for ids in prompts]
        parts = [part for prompt in own for part in prompt]
        counts = np.array([len(prompt) for prompt in own])
        rows = np.full((len(own), max(self._min_chunks, counts.max())), len(parts))
        filled = np.arange(rows.shape[1]) < counts[:, None]
        rows[filled] = np.arange(len(parts))
        if not filled.all():
            parts.append([])
        return Chunks(torch.stack([self._chunk(part) for part in parts]), torch.from_numpy(rows))

    def _chunk(self, ids: list[int]) -> Tensor:
        """int64 [encoders, 77]"""
        chunk = self._pads[:, None].repeat(1, CHUNK_TOKENS + 2)
        chunk[:, : len(ids) + 2] = torch.tensor([self._tokenizer.bos_token_id, *ids, self._tokenizer.eos_token_id])
        return chunk


class Conditioning(NamedTuple):
    """What the UNet is told of the prompts."""

    states: Tensor
    """[B, 75·chunks + 2 or 77·chunks, D]; D is the sum of the text encoders' widths."""
    pooled: Tensor | None
    """[B, P], the projected end of the first chunk from the second text encoder; None where there is but one."""


class PromptEncoder:
    """Every chunk encoded by itself, then joined.

    With one text encoder (SD1.5, SD2) the hidden state `clip_skip` layers from the end (1 is the last) goes through the
    final layer norm. With two (SDXL, arXiv 2307.01952, section 2.1) the hidden states of both, without that norm, stand
    side by side, and there is a pooled output.
    """

    def __init__(
        self, encoders: Sequence[CLIPTextModel | CLIPTextModelWithProjection], clip_skip: int, join_chunks: str
    ) -> None:
        self.encoders = tuple(encoders)
        self.clip_skip = clip_skip
        self._trim = join_chunks == "trim"

    def __call__(self, input_ids: Tensor, chunk_rows: Tensor) -> Conditioning:
        """Encode `Chunks` on the encoders' device."""
        outputs = [
            encoder(ids, output_hidden_states=True)
            for encoder, ids in zip(self.encoders, input_ids.unbind(1), strict=True)
        ]
        states = [output.hidden_states[-self.clip_skip] for output in outputs]
        if len(self.encoders) == 1:
            return Conditioning(self._joined(self.encoders[0].final_layer_norm(states[0])[chunk_rows]), None)
        pooled = outputs[-1].text_embeds[chunk_rows[:, 0]]
        return Conditioning(self._joined(torch.cat(states, dim=-1)[chunk_rows]), pooled)

    def unused(self) -> Iterator[nn.Module]:
        """What gets no gradient: optimizers that wait for every parameter's gradient would wait for ever.

        These are the layers behind the one that `clip_skip` takes. Of SDXL, it is those of the first text encoder and
        its final norm; all of the second has a part in the pooled output.
        """
        first = self.encoders[0]
        yield from first.encoder.layers[len(first.encoder.layers) - self.clip_skip + 1 :]
        if len(self.encoders) > 1:
            yield first.final_layer_norm

    def _joined(self, states: Tensor) -> Tensor:
        """Of [B, n, 77, D]."""
        if not self._trim:
            return states.flatten(1, 2)  # [B, 77n, D]
        inner = states[:, :, 1:-1].flatten(1, 2)  # [B, 75n, D]
        return torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)
