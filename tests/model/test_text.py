"""Long prompts and clip skip."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.text import PromptTokenizer, encode, freeze_unused_layers, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tiny_model, subfolder="tokenizer")


@pytest.fixture
def text_encoder(tiny_model: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(tiny_model, subfolder="text_encoder").eval()


def test_a_folder_without_a_tokenizer_is_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "model"):
        (folder / "tokenizer").mkdir(parents=True)
        with pytest.raises(UserError, match="has no tokenizer that can be loaded"):
            load_tokenizer(ModelConfig(path=str(folder)))


def test_words_are_never_control_tokens(shared_data: Path) -> None:
    tokenizer = PromptTokenizer(CLIPTokenizer.from_pretrained(shared_data / "clip_tokenizer", model_max_length=77), 75)
    ids = tokenizer(["a <|endoftext|> b <|startoftext|>"])[0, 0, 1:]
    assert tokenizer.count("a <|endoftext|> b") == int(np.argmax(tokenizer(["a <|endoftext|> b"])[0, 0] == ids[-1])) - 1
    assert (ids[: tokenizer.count("a <|endoftext|> b <|startoftext|>")] < ids[-1] - 1).all()


def test_short_prompts_are_tokenized_as_clip_does(tokenizer: CLIPTokenizer) -> None:
    prompts = ["picture number 3", "", "tag 7, tag 12"]
    expected = tokenizer(prompts, padding="max_length", max_length=77)["input_ids"]
    assert PromptTokenizer(tokenizer, 225)(prompts).tolist() == [[ids] for ids in expected]


def test_the_real_tokenizer_pads_as_clip_does(shared_data: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(shared_data / "clip_tokenizer", model_max_length=77)
    ids = PromptTokenizer(tokenizer, 75)(["a photo of a cat"])[0, 0]
    assert ids[:7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert set(ids[7:].tolist()) == {tokenizer.pad_token_id}


def test_long_prompts_take_as_many_chunks_as_they_need(tokenizer: CLIPTokenizer) -> None:
    tokenize = PromptTokenizer(tokenizer, 525)
    word = tokenizer("picture", add_special_tokens=False)["input_ids"]
    assert len(word) == 1
    for words, chunks in ((1, 1), (75, 1), (76, 2), (150, 2), (525, 7), (600, 7)):
        ids = tokenize([" ".join(["picture"] * words), "tag"])
        assert ids.shape == (2, chunks, 77)
        assert (ids[0] == word[0]).sum() == min(words, 525)
        assert (ids[:, :, 0] == tokenizer.bos_token_id).all()
        assert (ids == tokenizer.eos_token_id).any(axis=2).all()


def test_tokens_keep_their_order_over_chunks(tokenizer: CLIPTokenizer) -> None:
    prompt = " ".join(f"number {i}" for i in range(60))
    flat = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = PromptTokenizer(tokenizer, 525)([prompt])[0]
    assert ids[:, 1:76].ravel()[: len(flat)].tolist() == flat


def test_the_longest_prompt_fills_every_chunk(tokenizer: CLIPTokenizer) -> None:
    assert PromptTokenizer(tokenizer, 225).longest(2).shape == (2, 3, 77)


def test_one_chunk_without_skip_is_clip_itself(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    ids = torch.from_numpy(PromptTokenizer(tokenizer, 75)(["picture number 3", "tag"]))
    assert torch.allclose(encode(text_encoder, ids, 1), text_encoder(ids[:, 0]).last_hidden_state, atol=1e-6)


def test_clip_skip_is_a_model_with_fewer_layers(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    ids = torch.from_numpy(PromptTokenizer(tokenizer, 75)(["picture number 3"]))
    skipped = encode(text_encoder, ids, 2)
    text_encoder.encoder.layers = text_encoder.encoder.layers[:-1]
    assert torch.allclose(skipped, text_encoder(ids[:, 0]).last_hidden_state, atol=1e-6)


def test_chunks_are_encoded_alone_and_joined_without_inner_ends(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> None:
    ids = torch.from_numpy(PromptTokenizer(tokenizer, 225)([" ".join(["picture"] * 160)]))
    joined = encode(text_encoder, ids, 1)
    assert joined.shape[1] == 3 * 75 + 2
    alone = [text_encoder(ids[:, i]).last_hidden_state for i in range(3)]
    assert torch.allclose(joined[:, 0], alone[0][:, 0], atol=1e-6)
    assert torch.allclose(joined[:, 1:76], alone[0][:, 1:76], atol=1e-6)
    assert torch.allclose(joined[:, 76:151], alone[1][:, 1:76], atol=1e-6)
    assert torch.allclose(joined[:, -1], alone[2][:, -1], atol=1e-6)


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_exactly_the_layers_without_gradient_are_frozen(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, clip_skip: int
) -> None:
    freeze_unused_layers(text_encoder, clip_skip)
    ids = torch.from_numpy(np.repeat(PromptTokenizer(tokenizer, 75)(["picture"]), 2, axis=0))
    encode(text_encoder, ids, clip_skip).square().sum().backward()
    for name, parameter in text_encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {int(n.split(".")[2]) for n, p in text_encoder.named_parameters() if not p.requires_grad}
    assert frozen == set(range(3 - clip_skip + 1, 3))
