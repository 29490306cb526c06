"""A run in four phases, stopped in each of them and on their borders: nobody can tell."""

import shutil
from pathlib import Path

import pytest

from data_tools.build import build
from finetune.monitor.files import read_lines
from finetune.monitor.intervals import ACTIVITIES
from finetune.monitor.ledger import read_ledger
from tests import processes
from tests.conftest import write_pictures

pytestmark = pytest.mark.slow
GROWN, FROZEN, ADOPTED, END = 7, 11, 14, 17
"""The steps before which the second, third and fourth phase begin, and where the run ends."""
BORDERS = {"single": (GROWN, FROZEN, ADOPTED), "zero2": (ADOPTED,)}
"""Those from which a run is gone on with; a launch of two ranks takes its time."""
WORLD = {"single": 1, "zero2": 2}
BATCH = 8
LARGER = "buckets: {resolution_px: 96, max_side_px: 128}, micro_batch: 2"
PHASES = [
    "{until: 1 epochs}",
    f"{{until: {FROZEN} steps, {LARGER}, optim: {{text_encoder_lr: 1e-5}}}}",
    "{until: 2 epochs, optim: {text_encoder_lr: 0, block_factors: {IN*: 0.5}}}",
    f"{{until: {END} steps, optim: {{name: adopt, text_encoder_lr: 1e-5}}}}",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    write_pictures(folder / "pictures", 60)
    build(folder / "pictures", folder / "shards", shard_mib=1, text_as="auto", workers=1)
    return folder / "shards"


def arguments(runs: Path, shards: Path, model: Path, strategy: str) -> tuple[str, ...]:
    return (
        "conf=hyperfusion",
        *(f"run.folder={runs}", f"data.shards={shards}", f"model.path={model}", f"strategy={strategy}"),
        *(
            f"phases=[{', '.join(PHASES)}]",
            "train.micro_batch=4",
            f"train.global_batch={BATCH}",
            "optim.lr=1e-3",
            "strategy.threads=1",
        ),
        *("data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=32", "data.workers=1"),
        *("data.window_shards=1", "data.held_out=0.1", "monitor.validation.every_steps=5", "ema.decay=0.9"),
        *("checkpoint.every_steps=3", "checkpoint.keep=100", "monitor.flush_every_steps=1"),
        *("monitor.samples.every_steps=0", "monitor.wandb.mode=disabled", "monitor.tensorboard=false"),
    )


def run_through(runs: Path, shards: Path, model: Path, strategy: str) -> Path:
    given = arguments(runs, shards, model, strategy)
    return processes.trained(runs / "hyperfusion", runs / "log", *given, processes=WORLD[strategy])


@pytest.fixture(scope="module", params=["single", "zero2"])
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(strategy: str, shards: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    return run_through(tmp_path_factory.mktemp(strategy), shards, tiny_model, strategy)


def assert_same(run: Path, other: Path) -> None:
    """Losses, rates, validations, draws and the exported model are the same to the last digit."""
    for name, columns in (
        ("metrics", ("step", "loss", "loss_by_decile", "grad_norm", "lr", "phase", "epoch")),
        ("validation", ("step", "loss", "by_decile", "ema_distance")),
    ):
        lines, others = (read_lines(folder / f"{name}.jsonl") for folder in (run, other))
        assert [[line[c] for c in columns] for line in lines] == [[line[c] for c in columns] for line in others]
    assert read_ledger(run / "ledger").equals(read_ledger(other / "ledger"))
    weights = sorted(path.relative_to(run) for path in (run / "export").rglob("*.safetensors"))
    assert len(weights) == 3
    for path in weights:
        assert (run / path).read_bytes() == (other / path).read_bytes(), path


def test_every_phase_trains_what_it_says(whole: Path) -> None:
    lines = read_lines(whole / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, END + 1))
    begins = {line["phase"]: line["step"] - 1 for line in reversed(lines)}
    assert begins == {1: 0, 2: GROWN, 3: FROZEN, 4: ADOPTED}
    groups = {line["phase"]: set(line["lr"]) for line in lines}
    inner = {group for group in groups[3] if group.startswith("unet.IN")}
    assert "unet.IN00" in inner
    assert groups[1] == groups[2] == {"unet", "text_encoder"}
    assert groups[3] == {"unet", *inner}
    assert groups[4] == {"unet", *inner, "text_encoder"}
    halved = next(line["lr"] for line in lines if line["phase"] == 3)
    assert halved["unet.IN00"] == halved["unet"] / 2


def test_intervals_tell_of_every_step(strategy: str, whole: Path) -> None:
    """Each step is flushed; those before a border are not flushed twice."""
    lines = read_lines(whole / "intervals.jsonl")
    assert [line["step"] for line in lines] == list(range(1, END + 1))
    for line in lines:
        assert sum(line["buckets"].values()) == BATCH
        assert line["images_per_s"] == pytest.approx(BATCH / line["seconds"])
        assert all(0.0 <= line[f"{activity}_share"] <= 1.0 for activity in ACTIVITIES)
        assert line["prompt_tokens_p95"] >= line["prompt_tokens_mean"] > 0.0
        assert (line["mfu"], line["gpu_memory_peak_gib"], line["cache_hits"]) == (None, None, None)
    # The validation before the first step belongs to its interval.
    assert lines[0]["sampling_share"] > 0.0
    assert (lines[-1]["updates"], lines[-1]["skipped"], lines[-1]["restarts"]) == (END, 0, 0)
    assert lines[-1]["checkpoint_s"] > 0.0


def test_deciles_and_the_average_are_told(whole: Path) -> None:
    for line in read_lines(whole / "metrics.jsonl"):
        there = [value for value in line["loss_by_decile"] if value is not None]
        assert len(line["loss_by_decile"]) == 10
        assert 0 < len(there) <= BATCH
        assert min(there) > 0.0
    first, *later = (line["ema_distance"] for line in read_lines(whole / "validation.jsonl"))
    assert first == 0.0
    assert all(0.0 < distance < 1.0 for distance in later)


def test_a_run_killed_in_a_phase_goes_on_as_if_nothing_had_happened(
    strategy: str, whole: Path, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    given = arguments(tmp_path, shards, tiny_model, strategy)
    latest = tmp_path / "hyperfusion" / "checkpoints" / "latest"

    def saved() -> bool:
        return latest.exists() and latest.read_text() == f"step-{9:08d}"

    processes.killed_when(saved, tmp_path / "log", *given, processes=WORLD[strategy])
    assert_same(run_through(tmp_path, shards, tiny_model, strategy), whole)


def test_a_run_goes_on_from_exactly_a_border(
    strategy: str, whole: Path, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for border in BORDERS[strategy]:
        run = tmp_path / str(border) / "hyperfusion"
        shutil.copytree(whole, run)
        for checkpoint in (run / "checkpoints").glob("step-*"):
            if int(checkpoint.name.removeprefix("step-")) > border:
                shutil.rmtree(checkpoint)
        assert (run / "checkpoints" / f"step-{border:08d}").is_dir()
        assert_same(run_through(run.parent, shards, tiny_model, strategy), whole)
