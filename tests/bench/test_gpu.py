"""The benchmark of GPUs, tried on the CPU with small models."""

import shutil
from pathlib import Path

import pytest
import torch

from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import load_skeleton
from finetune.monitor.flops import counted
from tests.bench import bench_gpu
from tests.bench.__main__ import BARS
from tests.bench.bench_gpu import Card, Sizes
from tests.bench.figure import Figure
from tests.bench.full_size import Counter, encoding_flops
from tests.twins import TWINS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few as there can be, and none of them compiled, which takes minutes on a CPU."""
    for name, value in {
        "ACCUMULATION": 2,
        "WARM_UP": 1,
        "STEPS": 1,
        "PROFILED": 1,
        "PRODUCTS": 1,
        "COMPILED": (),
    }.items():
        monkeypatch.setattr(bench_gpu, name, value)


@pytest.fixture(scope="module")
def counter(tiny_model: Path) -> Counter:
    return Counter(ModelConfig(path=str(tiny_model)))


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    found = {figure.name: figure for figure in figures}
    assert len(found) == len(figures)
    return found


def test_work_is_told_part_by_part(tiny_model: Path, counter: Counter) -> None:
    config = ModelConfig(path=str(tiny_model))
    work = counter.work(64)
    assert work.trained == counted(Trainee(load_skeleton(config)), 4, 8, encoders=1, chunks=1, encoded=1)
    encoder = load_skeleton(config).text_encoders["text_encoder"].config
    projections = encoder.num_hidden_layers * 2 * 77 * (4 + 2 * 4) * encoder.hidden_size**2
    attention = encoder.num_hidden_layers * 2 * 2 * 77**2 * encoder.hidden_size
    assert work.text == 3 * (projections + attention)


def test_encoding_grows_with_the_area_and_its_attention_with_the_square_of_that(tiny_model: Path) -> None:
    vae = load_skeleton(ModelConfig(path=str(tiny_model))).vae
    small, middle, large = (encoding_flops(vae, side) for side in (64, 128, 192))
    channels = vae.config.block_out_channels[-1]
    attention = 2 * 2 * 8**4 * channels  # of 8 × 8 latents
    assert middle == 4 * (small - attention) + 16 * attention
    assert large == 9 * (small - attention) + 81 * attention


def test_sd15_is_compared_with_products_with_pictures_and_with_a_plain_loop(
    tiny_model: Path, tmp_path: Path, counter: Counter
) -> None:
    sizes = Sizes(save=lambda family, folder, device: shutil.copytree(tiny_model, folder), product=64, precision="fp32")
    card = Card(tmp_path, CPU, sizes)
    card._counters["sd15"] = counter
    product = card.product()
    found = by_name(list(card.compared(64, (2,))))
    plain, compiled = (found[f"gpu.sd15_64_latents_{name}_2"].value for name in ("plain", "compiled"))
    live = found["gpu.sd15_64_live_fastest_2"].value
    assert found["gpu.sd15_64_live_vs_latents"].value == pytest.approx(live / max(plain, compiled))
    flops = counter.work(64).trained
    expected = max(plain, compiled) * flops / (product.value * bench_gpu.TERA)
    assert found["gpu.sd15_64_latents_mfu"].value == pytest.approx(expected)
    assert 0.0 < found["gpu.sd15_64_busy"].value < 1.0
    assert "matrix products" in found["gpu.sd15_64_busy"].detail
    assert found["gpu.vs_diffusers_loop"].value > 0.0


@pytest.mark.faults
def test_every_figure_that_a_gpu_is_asked_for_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "BUDGET_S", float("inf"))
    sides = {"512": 64, "768": 96, "1024": 128}
    sizes = Sizes(
        save=lambda family, folder, device: TWINS[family](folder),
        sides=tuple(sides.values()),
        micro_batches=((1, 2), (1,), (1,)),
        sdxl_micro_batch=1,
        product=64,
        precision="fp32",
    )
    card = Card(tmp_path, CPU, sizes)
    found = by_name(list(card.figures()))
    speeds = [f"gpu.{name}_images_per_s" for name in ("sd15_768", "sd15_1024", "sdxl_1024")]
    wanted = [*speeds, *(name for name in BARS if name.startswith("gpu."))]
    for large, small in sides.items():
        wanted = [name.replace(f"_{large}_", f"_{small}_") for name in wanted]
    assert set(wanted) <= found.keys()
    assert {f"gpu.{name}_vs_plain" for name in bench_gpu.SWITCHES} <= found.keys()
    config = card._config("sd15", 64, 1, (), live=True)
    larger = card._config("sd15", 64, 2, (), live=True)
    assert 0.0 < card._predicted_gib("sd15", config) < card._predicted_gib("sd15", larger)
