"""Training speed on a GPU: whole steps of runs of the published sizes with random weights, next to what the card can
multiply and to a plain loop."""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from data_tools.latents.encode import encode
from finetune.config import Config, phases
from finetune.data.batch import Batch
from finetune.errors import UserError
from finetune.memory.prediction import Model, Prediction
from finetune.model.config import ModelConfig
from finetune.model.families import load_components, load_skeleton
from finetune.stopwatch import take_memory_peak
from tests.bench.bare import BareLoop
from tests.bench.figure import Figure, Skipped
from tests.bench.full_size import Counter, save_random
from tests.bench.kernels import IDLE, Profile, profiled
from tests.bench.running import FromMemory, Steps, first_batches, recipe, running, small_shards

ACCUMULATION = 4
WARM_UP, STEPS, PROFILED = 3, 6, 3
PRODUCTS = 50
SAMPLES = 32
"""In each of two shards."""
RATE = 1e-6
BUDGET_S = 420.0
"""What has not begun by then is left out."""
GIB, TERA = 2**30, 1e12
COMPILED = ("model.compile=true",)
CHECKPOINTED = ("model.gradient_checkpointing=all",)
SDXL = ("optim=adamw8bit", *CHECKPOINTED)
SWITCHES = {"checkpointed": CHECKPOINTED, "adamw8bit": ("optim=adamw8bit",)}
"""What is tried beside the settings that most figures have."""


@dataclass(frozen=True)
class Sizes:
    """How large models, pictures and micro-batches are; tests have smaller ones."""

    save: Callable[[str, Path, torch.device], None] = save_random
    sides: tuple[int, ...] = (512, 768, 1024)
    micro_batches: tuple[tuple[int, ...], ...] = ((8, 16, 32), (8, 16), (4, 8))
    """That are tried for SD1.5 at each side, rising."""
    sdxl_micro_batch: int = 4
    product: int = 8192
    """Side of the matrices whose product is the measure."""
    precision: str = "bf16"


class Speed(NamedTuple):
    """What the steps of a run have shown."""

    images_per_s: float
    utilisation: float
    """FLOPs of what trains / those of matrix products in the same time."""
    peak_gib: float | None
    """Of tensors on the GPU, like what was predicted of them."""
    predicted_gib: float | None
    batches: list[Batch]
    profile: Profile | None

    def __str__(self) -> str:
        peaks = (self.peak_gib, self.predicted_gib)
        memory = "" if None in peaks else ", {:.1f} GiB at the peak, predicted {:.1f}".format(*peaks)
        speed = f"{self.images_per_s:.2f} images/s in micro-batches of {self.micro_batch}"
        return f"{speed}, MFU {self.utilisation:.1%}{memory}"

    @property
    def micro_batch(self) -> int:
        """Samples of a forward pass."""
        return len(self.batches[0].timesteps)


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """Images per second through the whole step of a run, from micro-batches in pinned memory.

    Args:
        work: folder for the models, the shards and the runs: 60 GiB.
        shared: not needed.

    Raises:
        Skipped: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise Skipped("there is no CUDA device")
    yield from Card(work, torch.device("cuda"), Sizes()).figures()


class Card:
    """A GPU, or a CPU with small sizes, and what has been measured on it."""

    def __init__(self, work: Path, device: torch.device, sizes: Sizes) -> None:
        self._work, self._device, self._sizes = work, device, sizes
        self._counters: dict[str, Counter] = {}
        self._empty: dict[str, Model] = {}
        self._product_flops = 0.0
        """A second's."""
        self._plain: Speed | None = None
        """SD1.5 at the first side without any switch."""

    def figures(self) -> Iterator[Figure]:
        """All of them, those first that matter most."""
        began = time.perf_counter()
        yield self.product()
        (small, middle, large), (first, second, third) = self._sizes.sides, self._sizes.micro_batches
        groups: dict[str, Callable[[], Iterator[Figure]]] = {
            f"SD1.5 at {small} px": lambda: self.compared(small, first),
            f"SD1.5 at {middle} px": lambda: self.larger(middle, second),
            f"SD1.5 at {large} px": lambda: self.larger(large, third),
            f"SDXL at {large} px": lambda: self.sdxl(large),
            **{f"SD1.5 {name}": lambda name=name: self.switch(name, small) for name in SWITCHES},  # type: ignore[misc]
        }
        for name, group in groups.items():
            if time.perf_counter() - began > BUDGET_S:
                print(f"{name} is left out: {BUDGET_S:.0f} s are over", file=sys.stderr, flush=True)
                continue
            try:
                yield from group()
            except (UserError, Skipped, torch.cuda.OutOfMemoryError) as reason:
                print(f"{name} is cut short: {reason}", file=sys.stderr, flush=True)

    def product(self) -> Figure:
        """The rate that utilisation is measured by."""
        side = self._sizes.product
        a, b = (torch.randn(side, side, device=self._device).bfloat16() for _ in range(2))

        def multiply() -> None:
            for _ in range(PRODUCTS):
                a @ b

        self._timed(multiply)
        self._product_flops = 2.0 * side**3 * PRODUCTS / self._timed(multiply)
        return Figure("gpu.product_tflops", self._product_flops / TERA, "TFLOPS", f"bf16 products of {side}² matrices")

    def compared(self, side: int, micro_batches: Sequence[int]) -> Iterator[Figure]:
        """SD1.5 at the side at which it is compared with all else."""
        plain = self._plain = yield from self.best(side, micro_batches)
        compiled = yield from self.speed("sd15", side, plain.micro_batch, "compiled", COMPILED, profiling=True)
        fastest, settings = max((plain, ()), (compiled, COMPILED), key=lambda one: one[0].images_per_s)
        unet, text, vae = self._counter("sd15").work(side)
        yield Figure(
            f"gpu.sd15_{side}_latents_mfu",
            fastest.utilisation,
            "ratio",
            f"FLOPs of training / those of bf16 products in the same time; an image takes {unet / TERA:.2f} TFLOP in "
            f"the UNet, {text / TERA:.2f} in the text encoder, and {vae / TERA:.2f} in the VAE, which latents save; "
            f"{fastest}",
        )
        assert compiled.profile is not None
        yield Figure(
            f"gpu.sd15_{side}_busy",
            1.0 - compiled.profile.shares[IDLE],
            "ratio",
            f"time of {PROFILED} compiled steps in which a kernel runs / all of it; {compiled.profile}",
        )
        live = yield from self.speed("sd15", side, plain.micro_batch, "fastest", settings, live=True)
        yield live_vs_latents(side, live, fastest)
        yield self.vs_plain_loop(live)

    def larger(self, side: int, micro_batches: Sequence[int]) -> Iterator[Figure]:
        """SD1.5 at other sides."""
        fastest = yield from self.best(side, micro_batches)
        yield Figure(f"gpu.sd15_{side}_images_per_s", fastest.images_per_s, "images/s", f"on latents, {fastest}")
        live = yield from self.speed("sd15", side, fastest.micro_batch, "plain", (), live=True)
        yield live_vs_latents(side, live, fastest)

    def sdxl(self, side: int) -> Iterator[Figure]:
        """SDXL with both text encoders."""
        speed = yield from self.speed("sdxl", side, self._sizes.sdxl_micro_batch, "checkpointed", SDXL)
        yield Figure(f"gpu.sdxl_{side}_images_per_s", speed.images_per_s, "images/s", f"on latents, {speed}")

    def switch(self, name: str, side: int) -> Iterator[Figure]:
        """What one setting does to the speed and the memory of SD1.5."""
        if self._plain is None:
            raise Skipped("there is nothing to compare with")
        speed = yield from self.speed("sd15", side, self._plain.micro_batch, name, SWITCHES[name])
        yield Figure(
            f"gpu.{name}_vs_plain",
            speed.images_per_s / self._plain.images_per_s,
            "ratio",
            f"images/s of SD1.5 at {side} px with {' '.join(SWITCHES[name])} / without; {speed}; {self._plain}",
        )

    def vs_plain_loop(self, live: Speed) -> Figure:
        """A plain loop with the same micro-batches of pictures."""
        release()
        components = load_components(ModelConfig(path=str(self._model("sd15"))))
        loop = BareLoop(components, self._device, bf16=self._sizes.precision == "bf16")
        optimizer = torch.optim.AdamW(loop.parameters, lr=RATE)

        def steps() -> None:
            for _ in range(STEPS):
                loop.step(live.batches, optimizer)

        self._timed(steps)
        plain = STEPS * ACCUMULATION * live.micro_batch / self._timed(steps)
        return Figure(
            "gpu.vs_diffusers_loop",
            live.images_per_s / plain,
            "ratio",
            f"images/s of a run / of a plain loop, both from pictures, {ACCUMULATION} micro-batches a step: {live}, "
            f"against {plain:.2f} images/s",
        )

    def best(self, side: int, micro_batches: Sequence[int]) -> Generator[Figure, None, Speed]:
        """The fastest of some micro-batches that fit, without any switch, on latents."""
        found: list[Speed] = []
        for micro_batch in micro_batches:
            try:
                found.append((yield from self.speed("sd15", side, micro_batch, "plain", ())))
            except (UserError, torch.cuda.OutOfMemoryError):
                if not found:
                    raise
                break
        return max(found, key=lambda speed: speed.images_per_s)

    def speed(
        self,
        family: str,
        side: int,
        micro_batch: int,
        name: str,
        settings: Sequence[str],
        *,
        live: bool = False,
        profiling: bool = False,
    ) -> Generator[Figure, None, Speed]:
        """Take steps of a run.

        Args:
            name: what tells the settings in the figure's.
            live: whether the VAE encodes pictures in every step.

        Raises:
            UserError: it does not fit into the memory.
        """
        config = self._config(family, side, micro_batch, settings, live=live)
        flops = self._counter(family).work(side).trained
        release()
        with running(config) as run:
            batches = first_batches(run, ACCUMULATION)
            steps = Steps(run, FromMemory(batches))
            self._timed(lambda: steps.take(WARM_UP))
            take_memory_peak(self._device)
            images_per_s = STEPS * ACCUMULATION * micro_batch / self._timed(lambda: steps.take(STEPS))
            peak = take_memory_peak(self._device)
            predicted_gib = None if peak is None else self._predicted_gib(family, config)
            profile = profiled(lambda: steps.take(PROFILED), self._device) if profiling else None
        utilisation = images_per_s * flops / self._product_flops
        speed = Speed(images_per_s, utilisation, peak and peak / GIB, predicted_gib, batches, profile)
        what = f"{family}_{side}_{'live' if live else 'latents'}_{name}"
        yield Figure(f"gpu.{what}_{micro_batch}", images_per_s, "images/s", str(speed))
        return speed

    def _config(self, family: str, side: int, micro_batch: int, settings: Sequence[str], *, live: bool) -> Config:
        small_shards(self._work / f"squares-{side}", side, SAMPLES)
        latents = self._work / f"latents-{family}-{side}"
        run = f"run-{len(list(self._work.glob('run-*')))}"
        given = [
            *(f"strategy.precision={self._sizes.precision}", "strategy.threads=0"),
            *(f"optim.lr={RATE}", f"optim.text_encoder_lr={RATE}", "data.workers=0"),
            *(f"train.micro_batch={micro_batch}", f"train.global_batch={ACCUMULATION * micro_batch}"),
            *(f"phases=[{{until: {WARM_UP + STEPS + PROFILED} steps}}]", "monitor.flush_every_steps=1000"),
            *("monitor.tensorboard=false", "monitor.wandb.mode=disabled", *settings),
        ]
        on_latents = () if live else (f"data.latents={latents}",)
        config = recipe(self._work, run, self._model(family), side, *given, *on_latents)
        if not live and not latents.exists():
            with tempfile.TemporaryDirectory() as kept:
                encode(config, Path(kept), "fp16")
        return config

    def _model(self, family: str) -> Path:
        folder = self._work / family
        if not folder.exists():
            self._sizes.save(family, folder, self._device)
        return folder

    def _counter(self, family: str) -> Counter:
        if family not in self._counters:
            self._counters[family] = Counter(ModelConfig(path=str(self._model(family))))
        return self._counters[family]

    def _predicted_gib(self, family: str, config: Config) -> float:
        """What `runs plan --memory` says of tensors alone."""
        if family not in self._empty:
            self._empty[family] = Model(partial(load_skeleton, config.model))
        (phase,) = phases(config)
        parts = Prediction(config, phase, 1, self._empty[family]).bytes()
        return (sum(parts.values()) - parts["context"]) / GIB

    def _timed(self, work: Callable[[], object]) -> float:
        """Seconds until the device has done it."""
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def live_vs_latents(side: int, live: Speed, latents: Speed) -> Figure:
    """What it costs to encode in every step."""
    return Figure(
        f"gpu.sd15_{side}_live_vs_latents",
        live.images_per_s / latents.images_per_s,
        "ratio",
        f"images/s from pictures / from latents: {live}, against {latents.images_per_s:.2f}",
    )


def release() -> None:
    """Give back what a run that is over has left on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    torch._dynamo.reset()
