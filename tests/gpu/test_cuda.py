"""What only a GPU can show."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from finetune.data.batch import LatentShape
from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.objective import Objective
from finetune.distributed import Distributed
from finetune.distributed.fragments import RankState
from finetune.distributed.runtime import set_missing_rank_variables
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.model.graphs import Graphs
from finetune.model.text import PromptTokenizer, load_tokenizers
from finetune.optim.config import EmaConfig, OptimConfig, state_kind
from finetune.optim.groups import parameter_groups
from finetune.optim.optimizers import build_optimizer
from finetune.step import TrainingStep, trial_batch
from finetune.stopwatch import Stopwatch, take_memory_peak
from finetune.strategy import StrategyConfig
from finetune.warmup import least_trained
from tests.bench.running import FromMemory, Steps, first_batches, recipe, running, small_shards

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module", autouse=True)
def rank_variables() -> None:
    """Let the first of these tests make the group of processes that ddp needs: there is one for the whole process."""
    set_missing_rank_variables()


@dataclass
class Setting:
    """What differs between the runs of these tests."""

    precision: str = "fp32"
    attention: str = "sdpa"
    optimizer: str = "adamw8bit"
    ema: EmaConfig | None = None
    strategy: str = "single"


class Run:
    """A few steps on a batch of noise in one process."""

    def __init__(self, tiny_model: Path, setting: Setting) -> None:
        config = ModelConfig(path=str(tiny_model), attention=setting.attention)
        components = load_components(config)
        self.distributed = Distributed(StrategyConfig(name=setting.strategy, precision=setting.precision))
        self.trainee = Trainee(components)
        self.optim = OptimConfig(name=setting.optimizer, lr=1e-3, text_encoder_lr=1e-3)
        self.groups = parameter_groups(self.trainee.trainable, self.optim)
        self.ema = setting.ema or EmaConfig()
        model = self.prepare()
        device = self.distributed.device
        self.vae = components.vae.to(device).requires_grad_(False)
        self.objective = Objective(DiffusionConfig(weighting="constant")).to(device)
        self.step = TrainingStep(model, self.vae, self.objective, self.distributed.autocast())
        prompts = PromptTokenizer(load_tokenizers(config), 150).longest(4)
        batch = trial_batch(prompts, 128, 64, LatentShape(4, 8))
        noise = torch.randn(batch.noise.shape, generator=torch.Generator().manual_seed(0))
        self.batch = batch._replace(noise=noise, timesteps=torch.tensor([10, 300, 600, 999]))

    def prepare(self) -> nn.Module:
        """Wrap the model with an optimizer that is new; the model to call."""
        groups = {label: [self.trainee.trainable[n] for n in names] for label, names in self.groups.items()}
        return self.distributed.prepare(
            self.trainee,
            build_optimizer(self.optim, groups),
            kind=state_kind(self.optim),
            micro_batch=4,
            global_batch=4,
            max_grad_norm=1.0,
            resting={},
            ema=self.ema,
        )

    def backward(self) -> float:
        loss = self.step.loss(self.step.prepare(self.batch)).weighted
        self.distributed.backward(loss, last=True)
        return loss.item()

    def losses(self, steps: int) -> list[float]:
        values = []
        for _ in range(steps):
            values.append(self.backward())
            self.distributed.step([1e-3] * len(self.groups))
        return values

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.trainee.named_parameters()}


def assert_same_fragments(state: RankState, again: RankState) -> None:
    for name, (fragment,) in state["fragments"].items():
        for key, value in fragment.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again["fragments"][name][0][key])), (name, key)


def assert_same_state(state: RankState, again: RankState) -> None:
    assert_same_fragments(state, again)
    for before, after in zip(state["blocks"], again["blocks"], strict=True):
        assert all(torch.equal(before["state"][key], after["state"][key]) for key in before["state"])


def losses(tiny_model: Path, steps: int, setting: Setting) -> list[float]:
    return Run(tiny_model, setting).losses(steps)


def test_8_bit_training_learns_on_cuda(tiny_model: Path) -> None:
    values = losses(tiny_model, 30, Setting())
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_near_fp32(tiny_model: Path, precision: str) -> None:
    exact, rounded = losses(tiny_model, 3, Setting()), losses(tiny_model, 3, Setting(precision=precision))
    assert rounded == pytest.approx(exact, rel=0.03)


def test_xformers_computes_what_sdpa_does(tiny_model: Path) -> None:
    pytest.importorskip("xformers")
    assert losses(tiny_model, 2, Setting(attention="xformers")) == pytest.approx(
        losses(tiny_model, 2, Setting()), rel=1e-3
    )


@pytest.fixture
def compiles() -> Iterator[None]:
    """Afterwards nothing is compiled any more, and all that was is forgotten."""
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.03)])
@pytest.mark.parametrize("strategy", ["single", "ddp", "zero2"])
def test_compiled_blocks_compute_what_plain_ones_do(
    tiny_model: Path, strategy: str, precision: str, tolerance: float
) -> None:
    plain = losses(tiny_model, 3, Setting(precision=precision, optimizer="adamw", strategy=strategy))
    run = Run(tiny_model, Setting(precision=precision, optimizer="adamw", strategy=strategy))
    alone = TrainingStep(run.trainee, run.vae, run.objective, run.distributed.autocast())
    with Graphs(run.trainee.unet, run.vae.encoder).compiling():
        loss = alone.loss(alone.prepare(run.batch)).weighted
        torch.autograd.grad(loss, least_trained(run.trainee), allow_unused=True)
    made = counters["stats"]["unique_graphs"]
    assert made > 0
    assert run.losses(3) == pytest.approx(plain, rel=tolerance)
    shorter = run.batch._replace(input_ids=run.batch.input_ids[:4], chunk_rows=run.batch.chunk_rows[:, :1] // 2)
    run.step.loss(run.step.prepare(shorter))
    assert counters["stats"]["unique_graphs"] == made


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"])
def test_state_is_restored_bit_by_bit_on_cuda(tiny_model: Path, optimizer: str) -> None:
    run = Run(tiny_model, Setting(optimizer=optimizer, ema=EmaConfig(decay=0.9)))
    run.losses(3)
    state = run.distributed.state()
    run.prepare()
    run.distributed.load_state(lambda rank: state, 1)
    assert_same_state(state, run.distributed.state())


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_any_strategy_goes_on_from_one_process_s_state_on_cuda(tiny_model: Path, strategy: str) -> None:
    single = Run(tiny_model, Setting(optimizer="adamw", ema=EmaConfig(decay=0.9)))
    single.losses(3)
    state = single.distributed.state()
    run = Run(tiny_model, Setting(optimizer="adamw", ema=EmaConfig(decay=0.9), strategy=strategy))
    run.distributed.load_state(lambda rank: state, 1)
    assert_same_fragments(state, run.distributed.state())
    assert run.losses(3) == pytest.approx(single.losses(3), rel=1e-4)


@pytest.mark.parametrize("strategy", ["single", "ddp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
def test_a_step_that_is_left_out_leaves_no_trace_on_cuda(tiny_model: Path, strategy: str, spoiled: float) -> None:
    run = Run(tiny_model, Setting(optimizer="adamw", ema=EmaConfig(decay=0.9), strategy=strategy))
    run.losses(2)
    state = run.distributed.state()
    run.distributed.backward(run.step.loss(run.step.prepare(run.batch)).weighted * spoiled, last=True)
    assert not torch.isfinite(run.distributed.gradient_norm())
    run.distributed.skip()
    assert_same_state(state, run.distributed.state())
    run.backward()
    assert torch.isfinite(run.distributed.gradient_norm())
    run.distributed.step([1e-3] * len(run.groups))
    assert all(torch.isfinite(weight).all() for weight in run.weights().values())


def test_an_overflow_halves_the_scale_and_nothing_else_on_cuda(tiny_model: Path) -> None:
    run = Run(tiny_model, Setting(precision="fp16", optimizer="adamw"))
    run.losses(2)
    before, scale = run.weights(), run.distributed.state()["loss_scale"]["factor"]
    run.distributed.backward(run.step.loss(run.step.prepare(run.batch)).weighted * float("inf"), last=True)
    run.distributed.step([1e-3] * len(run.groups))
    assert run.distributed.state()["loss_scale"]["factor"] == scale / 2
    assert all(torch.equal(weight, before[name]) for name, weight in run.weights().items())


def test_a_stopwatch_counts_the_device_s_time_and_not_the_host_s() -> None:
    watch = Stopwatch(torch.device("cuda"))
    work = torch.randn(4096, 4096, device="cuda")
    with watch:
        for _ in range(50):
            work = work @ work.T / 4096.0
    began = time.perf_counter()
    torch.cuda.synchronize()
    waited_s = time.perf_counter() - began
    assert watch.seconds() >= 0.5 * waited_s > 0.0


def test_an_average_in_main_memory_is_that_beside_the_weights(tiny_model: Path) -> None:
    run = Run(tiny_model, Setting(ema=EmaConfig(decay=0.9, device="cpu")))
    trained = run.distributed._flats
    beside = [flat.values.double() for flat in trained]
    for n in range(5):
        run.losses(1)
        decay = min(0.9, (1 + n) / (10 + n))
        beside = [decay * b + (1 - decay) * flat.values.double() for b, flat in zip(beside, trained, strict=True)]
    before = run.weights()
    with run.distributed.evaluation_weights():
        for flat, average in zip(trained, beside, strict=True):
            assert torch.allclose(flat.values.double(), average, rtol=0.0, atol=1e-6)
    assert all(torch.equal(p, before[name]) for name, p in run.weights().items())


def test_the_peak_is_that_since_it_was_last_asked_for() -> None:
    device = torch.device("cuda")
    take_memory_peak(device)
    before = torch.cuda.memory_allocated(device)
    large = torch.empty(1 << 24, dtype=torch.uint8, device=device)
    del large
    peaks = [take_memory_peak(device), take_memory_peak(device)]
    assert peaks == [before + (1 << 24), before]


def test_deciles_and_the_distance_of_the_average_are_those_of_the_cpu(tiny_model: Path) -> None:
    run = Run(tiny_model, Setting(ema=EmaConfig(decay=0.9)))
    sums, counts = run.step.loss(run.step.prepare(run.batch)).by_decile.cpu()
    assert counts.tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert (sums > 0.0).tolist() == [count > 0 for count in counts.tolist()]
    assert run.distributed.ema_distance() == 0.0
    run.losses(2)
    with run.distributed.evaluation_weights():
        average = torch.cat([p.detach().flatten().double() for p in run.trainee.trainable.values()])
    weights = torch.cat([p.detach().flatten().double() for p in run.trainee.trainable.values()])
    expected = ((weights - average).norm() / weights.norm()).item()
    assert run.distributed.ema_distance() == pytest.approx(expected, rel=1e-4)


def test_nothing_in_a_step_waits_for_the_device_but_for_whether_it_may_be_made(
    tiny_model: Path, tmp_path: Path
) -> None:
    small_shards(tmp_path / "squares-64", 64, 16)
    steps = ["phases=[{until: 8 steps}]", "train.micro_batch=2", "train.global_batch=8", "data.workers=0"]
    unwatched = ["monitor.tensorboard=false", "monitor.wandb.mode=disabled", "strategy.precision=bf16"]
    with running(recipe(tmp_path, "run", tiny_model, 64, *steps, *unwatched)) as run:
        batches = FromMemory(first_batches(run, 4))
        Steps(run, batches).take(2)  # kernels are loaded, memory is had
        rates = run.parts.engine.rates(run.parts.phases.at(2), 2, 8)
        torch.cuda.set_sync_debug_mode("error")
        try:
            losses, _, _ = run.accumulate(2, batches)
            norm = run.distributed.gradient_norm()
            run.distributed.share(losses.weighted, (False,), losses.by_decile)
            run.distributed.step(list(rates.values()))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(norm)
        assert torch.isfinite(losses.weighted)


def test_what_is_prepared_beside_the_passes_is_what_is_prepared_in_order(tiny_model: Path) -> None:
    run = Run(tiny_model, Setting(optimizer="adamw"))
    others = [run.batch._replace(noise=run.batch.noise * (1 + i)) for i in range(8)]
    busy = torch.randn(4096, 4096, device="cuda")
    ahead = []
    for batch in others:
        busy = busy @ busy.T / 4096.0  # the stream that trains has work left while the next is prepared
        prepared = run.step.prepare(batch)
        ahead.append([part.clone() for part in prepared])
        del prepared  # its memory may be taken by what is prepared next
        run.step.loss(run.step.prepare(batch)).weighted.backward()
    torch.cuda.synchronize()
    for batch, found in zip(others, ahead, strict=True):
        torch.cuda.synchronize()
        expected = run.step._prepared(batch)
        assert all(torch.equal(part, same) for part, same in zip(found, expected, strict=True))
