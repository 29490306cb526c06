"""The demo's pictures, its model and its check."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.demo.score import nearest_colour, painted, score
from data_tools.demo.shapes import PALETTE, check_prompts, draw, scenes, write_pictures
from data_tools.demo.tiny_model import TinySizes, teach_vae, tiny_vae, train_tokenizer
from finetune.data.hashing import CounterRng
from finetune.model.config import ModelConfig
from finetune.model.families import load_components


def test_what_is_asked_for_was_never_drawn() -> None:
    drawn, held_out = scenes()
    assert len(held_out) == 64
    assert not set(drawn) & set(held_out)
    assert {s.colour for s in drawn} == {s.colour for s in held_out} == set(PALETTE)
    assert len(list(check_prompts())) == 64


@pytest.mark.parametrize("size", [(96, 96), (128, 72), (72, 128)])
def test_the_check_sees_what_was_drawn(size: tuple[int, int]) -> None:
    for i, scene in enumerate(chain(*scenes())):
        picture = draw(scene, *size, CounterRng(3, i)).resize((48, 48))
        assert painted(picture) == (scene.colour, scene.background)


def test_colours_are_well_apart() -> None:
    values = np.array(list(PALETTE.values()), dtype=float)
    distances = np.linalg.norm(values[:, None] - values[None], axis=2) + 1e9 * np.eye(len(values))
    assert distances.min() > 100
    noisy = np.array(PALETTE["pink"]) + np.random.default_rng(0).normal(0, 30, (20, 20, 3))
    assert nearest_colour(noisy.clip(0, 255).astype(np.uint8)) == "pink"


def test_a_blind_painter_scores_at_chance() -> None:
    _, held_out = scenes()
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(40):
        colours = rng.choice(list(PALETTE), size=64)
        pictures = [Image.new("RGB", (48, 48), PALETTE[str(colour)]) for colour in colours]
        shares.append(score(pictures, held_out)["shape_colour"])
    assert np.mean(shares) == pytest.approx(1 / len(PALETTE), abs=0.02)


def test_pictures_come_with_tags_and_caption_that_name_their_colours(tmp_path: Path) -> None:
    write_pictures(tmp_path, 30)
    assert len({Image.open(path).size for path in tmp_path.glob("*.png")}) >= 4
    for path in tmp_path.glob("*.json"):
        labels = json.loads(path.read_text())
        centre, border = painted(Image.open(path.with_suffix(".png")))
        assert labels["caption"].startswith(f"a {centre} ")
        assert labels["caption"].endswith(f" on a {border} background")
        assert labels["tags"][1] == f"{border} background"


def test_the_tokenizer_keeps_words_whole_and_comes_back(tmp_path: Path) -> None:
    texts = ["a red circle on a blue background", "red circle, blue background"]
    tokenizer = train_tokenizer(texts, tmp_path)
    assert train_tokenizer(texts, tmp_path / "again").get_vocab() == tokenizer.get_vocab()
    assert tokenizer.tokenize("Red  circle, blue") == ["red</w>", "circle</w>", ",</w>", "blue</w>"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer("red")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.model_max_length == 77


def test_the_model_has_sd15_s_shape(tiny_model: Path) -> None:
    components = load_components(ModelConfig(path=str(tiny_model)))
    unet = components.unet.config
    assert unet.down_block_types == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet.up_block_types == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert unet.cross_attention_dim == components.prompt_encoder.encoders[0].config.hidden_size


def test_the_vae_learns_to_reconstruct_and_its_latents_are_scaled_to_one() -> None:
    pictures = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    pictures[:32] = 220
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = tiny_vae(TinySizes(vae=(4, 8)))
    losses: list[float] = []
    before = torch.get_rng_state()
    teach_vae(vae, pictures, 120, losses.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    with torch.no_grad():
        latents = vae.encode(pictures.float() / 127.5 - 1.0).latent_dist.mean * vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1.0, rel=0.05)
