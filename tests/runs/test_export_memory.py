"""An export takes less memory than what it writes, whatever the precision that the run keeps."""

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from tests import twins
from tests.runs.saved import first_weights, recipe, shared_out, write_checkpoint, write_recipe

WIDTHS = (160, 320, 640, 640)
"""Of a UNet with 220 million parameters."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a wider SD1.5 twin that has trained and averaged its UNet on two ranks."""
    folder = tmp_path_factory.mktemp("wide")
    narrow = twins._unet

    def wide(**changes: object) -> object:
        return narrow(**{**changes, "block_out_channels": WIDTHS, "norm_num_groups": 32, "cross_attention_dim": 768})

    with patch.object(twins, "_unet", wide), patch.object(twins, "TEXT_WIDTH", 768):
        twins.save_sd15(folder / "model")
    config = recipe(folder / "model")
    write_recipe(folder / "run", config)
    trained = {name: weight for name, weight in first_weights(config).items() if name.startswith("unet.")}
    write_checkpoint(folder / "run", 7, shared_out(trained, trained, 2))
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "form", "dtype"),
    [("folder", "diffusers", "fp32"), ("a.safetensors", "single_file", "fp16"), ("b.safetensors", "webui", "fp32")],
)
def test_the_peak_stays_below_the_size_of_the_export(
    run: Path, tmp_path: Path, out: str, form: str, dtype: str
) -> None:
    command = [sys.executable, "-m", "tests.runs.export_memory", run, tmp_path / out, form, dtype]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["written"] > 220e6 * (2 if dtype == "fp16" else 4)
    assert found["peak"] < 1.2 * found["written"], found
