"""`runs sample`, from a run's folder to the page and the picture."""

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import Result
from diffusers import DiffusionPipeline
from PIL import Image
from typer.testing import CliRunner

from finetune.errors import UserError
from finetune.monitor.config import MonitorConfig
from finetune.monitor.samples.config import SamplesConfig
from finetune.runs.__main__ import app
from finetune.runs.sample.cells import chosen_device
from finetune.strategy import StrategyConfig
from tests.runs.saved import first_weights, recipe, shared_out, write_checkpoint, write_recipe

SIZE = 64
FACTORS = {7: (1.3, None), 9: (0.5, 0.8)}
"""By step, what training has made of every weight of the UNet, and what their average is. Much larger ones would make
of rounding another picture."""
HOSTILE = "<script>alert('x')</script> \"quoted\" & 狐"
Pixels = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def run(tiny_sd15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, the second of which has averages as well."""
    folder = tmp_path_factory.mktemp("runs") / "fox"
    config = recipe(tiny_sd15, "fox")
    prompts = ["picture number 3", {"prompt": "tag 7", "seed": 5, "negative_prompt": "picture"}]
    config.monitor = MonitorConfig(samples=SamplesConfig(prompts=prompts, sizes_px=[[SIZE, SIZE]], steps=2))
    config.strategy = StrategyConfig(precision="fp32")
    write_recipe(folder, config)
    weights = {name: weight for name, weight in first_weights(config).items() if name.startswith("unet.")}
    for step, (factor, average) in FACTORS.items():
        trained = {name: weight * factor for name, weight in weights.items()}
        averages = {name: weight * average for name, weight in weights.items()} if average else {}
        write_checkpoint(folder, step, shared_out(trained, averages, world=2))
    return folder


def invoked(run: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["sample", str(run), "--device", "cpu", *map(str, arguments)])


def sampled(run: Path, out: Path, *arguments: str) -> tuple["Page", Pixels]:
    """The page and the picture that a command makes."""
    done = invoked(run, "--out", out, *arguments)
    assert done.exit_code == 0, done.output
    assert out.name in done.stdout.replace("\n", "")
    return Page(out.read_text(encoding="utf-8")), pixels(Image.open(out.with_suffix(".png")))


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: dict[str, Pixels] = {}
        """By their description."""
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            given = {name: value or "" for name, value in attributes}
            self.sources.append(given["src"])
            head, _, data = given["src"].partition(",")
            assert head == "data:image/webp;base64"
            self.pictures[given["alt"]] = pixels(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def pixels(picture: Image.Image) -> Pixels:
    return np.asarray(picture.convert("RGB")).astype(np.int64)


def places(whole: Pixels, part: Pixels) -> list[tuple[int, int]]:
    """Where a picture lies in another, to two levels: left and top."""
    height, width = part.shape[:2]
    found = []
    for top in range(whole.shape[0] - height + 1):
        windows = np.lib.stride_tricks.sliding_window_view(whole[top], width, axis=0)  # [left, 3, width]
        for left in np.flatnonzero((np.abs(windows - part[0].T) <= 2).all(axis=(1, 2))):
            if np.abs(whole[top : top + height, left : left + width] - part).max() <= 2:
                found.append((int(left), top))
    return found


@pytest.fixture(scope="module")
def alone(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pixels]:
    """A picture that diffusers samples from an export of a checkpoint."""
    folder = tmp_path_factory.mktemp("exports")

    def sample(
        step: int,
        prompt: str,
        seed: int,
        negative: str = "",
        *,
        guidance: float = 7.0,
        steps: int = 2,
        raw: bool = False,
    ) -> Pixels:
        out = folder / f"{step}-{raw}"
        if not out.exists():
            arguments = ["export", str(run), str(out), "--step", str(step), *(["--raw"] if raw else [])]
            assert CliRunner().invoke(app, arguments).exit_code == 0
        pipeline = DiffusionPipeline.from_pretrained(out)
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "width": SIZE, "height": SIZE}
        generator = torch.Generator().manual_seed(seed)
        return pixels(
            pipeline(prompt, negative_prompt=negative, guidance_rescale=0.7, generator=generator, **options).images[0]
        )

    return sample


def test_every_cell_is_what_the_checkpoint_s_export_samples(
    run: Path, tmp_path: Path, alone: Callable[..., Pixels]
) -> None:
    page, picture = sampled(run, tmp_path / "xy.html")
    prompts = {"picture number 3": (0, ""), "tag 7": (5, "picture")}
    expected = {
        f"step {step}, {prompt}": alone(step, prompt, *rest) for prompt, rest in prompts.items() for step in FACTORS
    }
    assert list(page.pictures) == list(expected)
    assert len(set(page.sources)) == 4
    found = [places(picture, cell) for cell in expected.values()]
    assert [len(lefts) for lefts in found] == [1] * 4
    (a7, a9, b7, b9) = (only for (only,) in found)
    assert a7[0] == b7[0] < a9[0] == b9[0]
    assert a7[1] == a9[1] < b7[1] == b9[1]
    for name, cell in expected.items():  # whatever WebP makes of them, nearer to their own cell than to any other
        distances = {other: np.abs(page.pictures[name] - cells).mean() for other, cells in expected.items()}
        assert min(distances, key=distances.__getitem__) == name
        assert cell.shape == page.pictures[name].shape
    assert {"step 7", "step 9", "picture number 3", "tag 7", "guidance 7, 2 sampling steps, 64×64 px"} <= {*page.texts}


def test_other_axes_and_the_weights_themselves(run: Path, tmp_path: Path, alone: Callable[..., Pixels]) -> None:
    page, picture = sampled(
        run, tmp_path / "xy.html", "--x", "seed=3,4", "--y", "guidance=1,5", "--at", "prompt=tag 7", "--at", "steps=3"
    )
    assert list(page.pictures) == [f"seed {seed}, guidance {scale}" for scale in (1, 5) for seed in (3, 4)]
    for seed in (3, 4):
        for scale in (1, 5):
            assert len(places(picture, alone(9, "tag 7", seed, guidance=scale, steps=3))) == 1
    arguments = ("--x", "steps=2", "--y", "step=9", "--raw")
    page, picture = sampled(run, tmp_path / "raw.html", *arguments)
    assert len(places(picture, alone(9, "picture number 3", 0, raw=True))) == 1
    assert places(picture, alone(9, "picture number 3", 0)) == []


def test_what_prompts_hold_is_text_and_the_page_loads_nothing(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "xy.html"
    page, _ = sampled(run, out, "--x", f"prompt={HOSTILE}|tag", "--y", "step=9")
    text = out.read_text(encoding="utf-8")
    assert "<script" not in text
    assert HOSTILE in page.texts
    assert list(page.pictures) == [f"{HOSTILE}, step 9", "tag, step 9"]
    assert set(page.tags).isdisjoint({"script", "link", "iframe", "object"})
    assert re.search(r"""http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;""", text)
    assert "http:" not in text
    assert "https:" not in text


def test_the_page_lies_beside_the_run_s_grids_unless_told_otherwise(run: Path) -> None:
    done = invoked(run, "--x", "guidance=4", "--y", "steps=1")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (run / "samples").iterdir()} == {"xy-guidance-steps.html", "xy-guidance-steps.png"}


def test_a_page_has_a_page_s_name(run: Path, tmp_path: Path) -> None:
    assert "give a name that ends in .html" in str(invoked(run, "--out", tmp_path / "xy.png").exception)


def test_where_nothing_can_be_written_is_told_before_anything_is_sampled(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.runs.sample.cells.sample_cells", None)
    (tmp_path / "file").touch()
    error = invoked(run, "--out", tmp_path / "file" / "xy.html").exception
    assert "file cannot be written to (" in str(error)


def test_an_average_that_is_not_there_is_told(run: Path, tmp_path: Path) -> None:
    error = invoked(run, "--x", "step=7", "--ema", "--out", tmp_path / "xy.html").exception
    assert isinstance(error, UserError)
    assert "the run keeps no average of its weights" in str(error)


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_is_none_is_told(device: str) -> None:
    with pytest.raises(UserError, match=f"--device {device} cannot be used .*: give cpu, cuda or cuda:1"):
        chosen_device(device)
