"""Long prompts and clip skip."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from finetune.data.batch import Chunks
from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.text import PromptEncoder, PromptTokenizer, load_tokenizers


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tiny_model, subfolder="tokenizer")


def text_encoders(folder: Path) -> list[nn.Module]:
    """A twin's text encoders, as transformers loads them."""
    found = [CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").eval()]
    if (folder / "text_encoder_2").exists():
        found.append(CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2").eval())
    return found


def tokenized(folder: Path, prompts: list[str], max_tokens: int = 525) -> Chunks:
    return PromptTokenizer(load_tokenizers(ModelConfig(path=str(folder))), max_tokens)(prompts)


def spread(chunks: Chunks) -> Tensor:
    """Every prompt with all of its chunks: int64 [prompts, encoders, chunks, 77]."""
    return chunks.input_ids[chunks.chunk_rows].transpose(1, 2)


def test_a_folder_without_a_tokenizer_is_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "model"):
        (folder / "tokenizer").mkdir(parents=True)
        with pytest.raises(UserError, match="has no tokenizer that can be loaded"):
            load_tokenizers(ModelConfig(path=str(folder)))


def test_a_tokenizer_needs_no_model_beside_it(tiny_sdxl: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sdxl / "tokenizer", tmp_path / "tokenizer")
    assert len(load_tokenizers(ModelConfig(path=str(tmp_path)))) == 1
    shutil.copytree(tiny_sdxl / "tokenizer_2", tmp_path / "tokenizer_2")
    assert len(load_tokenizers(ModelConfig(path=str(tmp_path)))) == 2


def test_two_tokenizers_that_read_differently_are_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sdxl, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_2" / "tokenizer.json"
    contents = json.loads(path.read_text())
    contents["model"]["vocab"]["another"] = len(contents["model"]["vocab"])
    path.write_text(json.dumps(contents))
    with pytest.raises(UserError, match="its two tokenizers have different vocabularies"):
        load_tokenizers(ModelConfig(path=str(tmp_path / "model")))


def test_a_tokenizer_that_does_not_pad_is_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sdxl, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_2" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))
    with pytest.raises(UserError, match=r"its tokenizer_2 has no pad_token, .* name the one"):
        load_tokenizers(ModelConfig(path=str(tmp_path / "model")))


def test_words_are_never_control_tokens(shared_data: Path) -> None:
    clip = CLIPTokenizer.from_pretrained(shared_data / "clip_tokenizer", model_max_length=77)
    tokenizer = PromptTokenizer([clip], 75)
    ids = tokenizer(["a <|endoftext|> b <|startoftext|>"]).input_ids[0, 0, 1:]
    end = int((tokenizer(["a <|endoftext|> b"]).input_ids[0, 0] == ids[-1]).int().argmax())
    assert tokenizer.count("a <|endoftext|> b") == end - 1
    assert (ids[: tokenizer.count("a <|endoftext|> b <|startoftext|>")] < ids[-1] - 1).all()


def test_an_exclamation_mark_is_a_word_also_where_it_pads(shared_data: Path) -> None:
    # 256 is "!" at a word's end in CLIP's vocabulary, 0 the "!" with which OpenCLIP pads.
    folder = shared_data / "clip_tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token="!")
    assert PromptTokenizer([tokenizer], 75)(["hey!"]).input_ids[0, 0, :6].tolist() == [49406, 2189, 256, 49407, 0, 0]


def test_short_prompts_are_tokenized_as_each_tokenizer_does(twin: Path) -> None:
    prompts = ["picture number 3", "", "tag 7, tag 12"]
    ids = spread(tokenized(twin, prompts))
    for i, tokenizer in enumerate(load_tokenizers(ModelConfig(path=str(twin)))):
        expected = tokenizer(prompts, padding="max_length", max_length=77)["input_ids"]
        assert ids[:, i].tolist() == [[row] for row in expected]


def test_sdxl_s_encoders_get_the_same_tokens_and_their_own_padding(tiny_sdxl: Path) -> None:
    first, second = tokenized(tiny_sdxl, ["picture number 3"]).input_ids[0]
    end = int((first == first.max()).int().argmax()) + 1
    assert torch.equal(first[:end], second[:end])
    assert set(first[end:].tolist()) == {int(first.max())}
    assert set(second[end:].tolist()) == {0}


def test_the_real_tokenizer_pads_as_clip_does(shared_data: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(shared_data / "clip_tokenizer", model_max_length=77)
    ids = PromptTokenizer([tokenizer], 75)(["a photo of a cat"]).input_ids[0, 0]
    assert ids[:7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert set(ids[7:].tolist()) == {49407}


def test_long_prompts_take_as_many_chunks_as_they_need(tokenizer: CLIPTokenizer) -> None:
    tokenize = PromptTokenizer([tokenizer], 525)
    word = tokenizer("picture", add_special_tokens=False)["input_ids"]
    assert len(word) == 1
    for words, chunks in ((1, 1), (75, 1), (76, 2), (150, 2), (525, 7), (600, 7)):
        ids = spread(tokenize([" ".join(["picture"] * words), "tag"]))
        assert ids.shape == (2, 1, chunks, 77)
        assert (ids[0] == word[0]).sum() == min(words, 525)
        assert (ids[..., 0] == tokenizer.bos_token_id).all()
        assert (ids == tokenizer.eos_token_id).any(axis=-1).all()


def test_what_fills_up_prompts_is_one_empty_chunk(tokenizer: CLIPTokenizer) -> None:
    tokenize, long = PromptTokenizer([tokenizer], 225), " ".join(["picture"] * 80)
    chunks = tokenize(["tag", long, "", long])
    assert chunks.chunk_rows.tolist() == [[0, 6], [1, 2], [3, 6], [4, 5]]
    assert torch.equal(chunks.input_ids[6], tokenize([""]).input_ids[0])
    assert torch.equal(chunks.input_ids[3], chunks.input_ids[6])


def test_nothing_is_added_where_no_prompt_is_filled_up(tokenizer: CLIPTokenizer) -> None:
    chunks = PromptTokenizer([tokenizer], 225)(["tag", "", "tag"])
    assert chunks.chunk_rows.tolist() == [[0], [1], [2]]
    assert len(chunks.input_ids) == 3


@given(st.lists(st.integers(0, 400), min_size=1, max_size=6), st.sampled_from(["needed", "longest"]))
def test_any_prompts_are_what_they_are_alone_and_then_empty(
    tokenizer: CLIPTokenizer, words: list[int], pad_chunks: str
) -> None:
    tokenize = PromptTokenizer([tokenizer], 300, pad_chunks)
    prompts = [" ".join(["picture"] * count) for count in words]
    together, empty = spread(tokenize(prompts)), tokenize([""]).input_ids[0]
    assert together.shape[2] == (4 if pad_chunks == "longest" else max(1, -(-min(max(words), 300) // 75)))
    for prompt, found in zip(prompts, together, strict=True):  # [encoders, chunks, 77]
        own = PromptTokenizer([tokenizer], 300)([prompt]).input_ids  # [own chunks, encoders, 77]
        assert torch.equal(found[:, : len(own)], own.transpose(0, 1))
        assert all(torch.equal(chunk, empty) for chunk in found[:, len(own) :].unbind(1))


def test_as_many_chunks_as_there_can_be_on_request(tokenizer: CLIPTokenizer) -> None:
    chunks = PromptTokenizer([tokenizer], 225, "longest")(["tag"])
    assert chunks.chunk_rows.tolist() == [[0, 1, 1]]
    assert torch.equal(chunks.input_ids[:1], PromptTokenizer([tokenizer], 225)(["tag"]).input_ids)


def test_tokens_keep_their_order_over_chunks(tokenizer: CLIPTokenizer) -> None:
    prompt = " ".join(f"number {i}" for i in range(60))
    flat = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = spread(PromptTokenizer([tokenizer], 525)([prompt]))[0, 0]
    assert ids[:, 1:76].flatten()[: len(flat)].tolist() == flat


def test_the_longest_prompt_fills_every_chunk(tokenizer: CLIPTokenizer) -> None:
    chunks = PromptTokenizer([tokenizer], 225).longest(2)
    assert chunks.chunk_rows.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (chunks.input_ids[..., 1:] == tokenizer.eos_token_id).all()


def cut(text_encoder: nn.Module, clip_skip: int, norm: bool) -> CLIPTextModel:
    """A text encoder that ends at the layer that clip skip takes, with or without its final norm."""
    clip: CLIPTextModel = copy.deepcopy(getattr(text_encoder, "text_model", text_encoder))
    clip.encoder.layers = clip.encoder.layers[: len(clip.encoder.layers) - clip_skip + 1]
    clip.final_layer_norm = clip.final_layer_norm if norm else nn.Identity()
    return clip


def joined_by_hand(states: list[Tensor], join: str) -> Tensor:
    """One prompt's chunks [77, D] in a row, position by position."""
    rows = []
    for i, chunk in enumerate(states):
        first, last = i == 0, i == len(states) - 1
        rows += [
            row
            for position, row in enumerate(chunk)
            if join == "keep" or 0 < position < 76 or (position == 0 and first) or (position == 76 and last)
        ]
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("join", ["trim", "keep"])
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_joined_states_are_those_of_each_chunk_alone(twin: Path, clip_skip: int, join: str) -> None:
    encoders = text_encoders(twin)
    alone = [cut(encoder, clip_skip, norm=len(encoders) == 1) for encoder in encoders]
    for chunks in range(1, 8):
        prompts = tokenized(twin, [" ".join(["picture"] * (75 * chunks - 10)), "tag 3"])
        states, pooled = PromptEncoder(encoders, clip_skip, join)(*prompts)
        assert states.shape[1] == (75 * chunks + 2 if join == "trim" else 77 * chunks)
        ids = spread(prompts)
        for prompt, found in zip(ids, states, strict=True):  # [encoders, chunks, 77], [length, D]
            sides = [
                joined_by_hand([clip(chunk[None]).last_hidden_state[0] for chunk in each], join)
                for clip, each in zip(alone, prompt, strict=True)
            ]
            assert torch.allclose(found, torch.cat(sides, dim=1), atol=1e-5)
        if len(encoders) == 1:
            assert pooled is None
        else:
            assert torch.allclose(pooled, encoders[1](ids[:, 1, 0]).text_embeds, atol=1e-5)


@torch.no_grad()
def test_what_comes_later_leaves_the_pooled_output_alone(tiny_sdxl: Path) -> None:
    encoder = PromptEncoder(text_encoders(tiny_sdxl), 2, "trim")
    first, other = " ".join(["picture"] * 75), " ".join(["tag"] * 75)
    pooled = encoder(*tokenized(tiny_sdxl, [f"{first} tag", f"{first} number 3", f"{other} tag"])).pooled
    assert pooled is not None
    assert torch.equal(pooled[0], pooled[1])
    assert not torch.allclose(pooled[0], pooled[2], atol=1e-3)


def gradient(encoders: list[nn.Module], chunks: Chunks) -> tuple[Tensor, Tensor]:
    """The states, and the gradient of a loss in which each of them has another weight: float32 [parameters]."""
    for module in encoders:
        module.zero_grad()
    states, pooled = PromptEncoder(encoders, 1, "trim")(*chunks)
    loss = (states * torch.linspace(-1.0, 1.0, states.numel()).view_as(states)).mean()
    (loss if pooled is None else loss + pooled.square().mean()).backward()
    return states.detach(), torch.cat(
        [p.grad.flatten() for m in encoders for p in m.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("padded", [False, True])
def test_shared_chunks_have_the_states_and_gradients_of_chunks_apart(twin: Path, padded: bool) -> None:
    """To the last bit where nothing is shared; else the empty chunk's gradients are added up in another order, and
    matrix products of another number of rows may round otherwise."""
    encoders = text_encoders(twin)
    long = " ".join(["picture"] * 100)
    chunks = tokenized(twin, [long, "tag 3" if padded else f"{long} tag", "" if padded else long])
    rows = torch.arange(chunks.chunk_rows.numel()).view_as(chunks.chunk_rows)
    apart = Chunks(chunks.input_ids[chunks.chunk_rows.flatten()], rows)
    assert len(apart.input_ids) - len(chunks.input_ids) == (1 if padded else 0)
    (states, found), (expected_states, expected) = gradient(encoders, chunks), gradient(encoders, apart)
    if padded:
        assert torch.allclose(states, expected_states, atol=1e-6)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    else:
        assert torch.equal(states, expected_states)
        assert torch.equal(found, expected)
