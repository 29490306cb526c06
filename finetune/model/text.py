"""Prompts beyond CLIP's 77 positions: cut into chunks of 75 tokens, encoded each by itself, joined again."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.errors import UserError
from finetune.model.config import CHUNK_TOKENS, ModelConfig
from finetune.model.parts import load_part


def load_tokenizer(config: ModelConfig) -> CLIPTokenizer:
    """A model's tokenizer. Raises UserError where there is none."""
    tokenizer = load_part(CLIPTokenizer, config, "tokenizer")
    # Where its files are missing, transformers makes one that knows nothing else.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(
            f"model.path {config.path} has no tokenizer that can be loaded: "
            "give a folder or hub id in diffusers' layout"
        )
    return tokenizer


class PromptTokenizer:
    """Tokens of a prompt in chunks of [BOS, up to 75 tokens, EOS, padding]."""

    def __init__(self, tokenizer: CLIPTokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.max_chunks = max_tokens // CHUNK_TOKENS

    def __call__(self, prompts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Token ids of all prompts: int64 [prompts, chunks, 77], with as many chunks as the longest one needs.

        What a prompt has beyond `max_tokens` is cut.
        """
        encoded = [self._ids(prompt) for prompt in prompts]
        longest = max((len(ids) for ids in encoded), default=0)
        chunks = min(max(1, -(-longest // CHUNK_TOKENS)), self.max_chunks)
        return np.stack([self._in_chunks(ids, chunks) for ids in encoded])

    def count(self, text: str) -> int:
        """Tokens of a text, without those that begin and end it."""
        return len(self._ids(text))

    def longest(self, prompts: int) -> npt.NDArray[np.int64]:
        """The most tokens that a micro-batch can hold: int64 [prompts, max_chunks, 77]."""
        ids = [self._tokenizer.eos_token_id] * (self.max_chunks * CHUNK_TOKENS)
        return np.repeat(self._in_chunks(ids, self.max_chunks)[None], prompts, axis=0)

    def _ids(self, text: str) -> list[int]:
        # Where a text writes <|endoftext|>, it is words like others and no end.
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        ids: list[int] = found["input_ids"]
        return ids

    def _in_chunks(self, ids: list[int], chunks: int) -> npt.NDArray[np.int64]:
        bos, eos, pad = (
            self._tokenizer.bos_token_id,
            self._tokenizer.eos_token_id,
            self._tokenizer.pad_token_id,
        )
        rows = np.full((chunks, CHUNK_TOKENS + 2), pad, dtype=np.int64)
        rows[:, 0] = bos
        for i, row in enumerate(rows):
            part = ids[i * CHUNK_TOKENS : (i + 1) * CHUNK_TOKENS]
            row[1 : 1 + len(part)] = part
            row[1 + len(part)] = eos
        return rows


def encode(text_encoder: CLIPTextModel, input_ids: Tensor, clip_skip: int) -> Tensor:
    """The UNet's conditioning: every chunk encoded by itself, joined without the inner BOS and EOS positions.

    The hidden state is taken `clip_skip` layers from the end (1 is the last) and goes through the final layer norm, as
    SD1.5 does.

    Args:
        input_ids: int64 [B, chunks, 77].

    Returns:
        [B, 75·chunks + 2, hidden].
    """
    batch, chunks, length = input_ids.shape
    hidden_states = text_encoder(input_ids.view(batch * chunks, length), output_hidden_states=True).hidden_states
    states: Tensor = text_encoder.final_layer_norm(hidden_states[-clip_skip])
    states = states.view(batch, chunks, length, -1)  # [B, n, 77, D]
    inner = states[:, :, 1:-1].flatten(1, 2)  # [B, 75n, D]
    return torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)


def freeze_unused_layers(text_encoder: CLIPTextModel, clip_skip: int) -> None:
    """Freeze the layers behind the one that `clip_skip` takes: they get no gradient, and optimizers that wait for
    every parameter's gradient would wait for ever."""
    unused: list[nn.Module] = list(text_encoder.encoder.layers)[len(text_encoder.encoder.layers) - clip_skip + 1 :]
    for layer in unused:
        layer.requires_grad_(False)
