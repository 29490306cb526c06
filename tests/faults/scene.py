"""A run that something befalls, and what is to be told from it afterwards."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from data_tools.demo.tiny_model import TinySizes, save_tiny_model, train_tokenizer
from finetune.entry import MISTAKEN
from finetune.monitor.files import read_lines
from finetune.monitor.ledger import read_ledger
from tests.forks import Fork, begun, ended
from tests.processes import DEADLINE_S, assert_alone, finish, launch, trained, wait_until

STEPS, EVERY, BATCH = 12, 3, 8
"""The run's length, its steps between checkpoints, and the samples of a step."""
INJECT = Path(__file__).with_name("inject")
EXACT = ("step", "loss", "loss_by_decile", "grad_norm", "lr", "epoch", "samples_seen", "phase")
"""What is the same to the last digit in a run that nothing befalls."""
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")

Fault = dict[str, Any]


SIZES = TinySizes(unet=(16, 32), vae=(4, 8, 8, 8), text=16, text_layers=3)
"""Levels of a single pixel, as a deeper model has them in so small pictures, are normalised to nothing but rounding,
which the gradients then consist of."""


def save_model(folder: Path) -> None:
    """Make `model` in a folder."""
    texts = [f"picture number {i}, tag {i}" for i in range(100)]
    save_tiny_model(folder / "model", train_tokenizer(texts, folder / "tokenizer"), SIZES)


def arguments(runs: Path, shards: Path, model: Path) -> tuple[str, ...]:
    """The demo's recipe at a size of which a step takes a moment."""
    return (
        *("conf=demo", f"run.folder={runs}", f"model.path={model}", f"data.shards={shards}"),
        *("data.buckets.step_px=32", "data.buckets.resolution_px=64", "data.buckets.max_side_px=96"),
        *("data.window_shards=1", "data.workers=0", "train.micro_batch=2", f"train.global_batch={BATCH}"),
        *(f"phases=[{{until: {STEPS} steps}}]", f"checkpoint.every_steps={EVERY}", "checkpoint.keep=100"),
        *("strategy.threads=1", "strategy.precision=fp32", "optim.text_encoder_lr=1e-4"),
        *("monitor.flush_every_steps=1", "monitor.heartbeat_s=0.2", "monitor.samples.every_steps=0"),
        *("monitor.tensorboard=false", "monitor.wandb.mode=disabled"),
    )


@dataclass(frozen=True)
class Scene:
    """A run of a tiny model in a folder of its own, started with the real command again and again."""

    runs: Path
    arguments: tuple[str, ...]
    processes: int = 1

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.runs / "demo"

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.run / "checkpoints"

    @property
    def log(self) -> Path:
        """What its processes have said."""
        return self.runs / "log"

    @property
    def said(self) -> str:
        """The text of the log."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def start(
        self,
        *overrides: str,
        faults: Sequence[Fault] = (),
        restarts: int = 0,
        processes: int | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.Popen[bytes]:
        """Start the command, with faults to come; see inject/sitecustomize.py."""
        path = os.pathsep.join([str(INJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return launch(
            self.log,
            *self.arguments,
            *overrides,
            processes=processes or self.processes,
            restarts=restarts,
            environment={"PYTHONPATH": path, "LONGHAUL_FAULTS": json.dumps(faults), **environment},
        )

    def begin(self) -> list[Fork]:
        """Begin the run in forked processes."""
        return begun(self.log, "finetune", *self.arguments, processes=self.processes)

    def finish(self, *overrides: str, faults: Sequence[Fault] = (), processes: int | None = None) -> Path:
        """Do the run to its end, which has to be good; its folder. Only faults to come need the real command."""
        if not faults:
            return trained(self.run, self.log, *self.arguments, *overrides, processes=processes or self.processes)
        finish(self.start(*overrides, faults=faults, processes=processes), self.run, self.log)
        return self.run

    def fail(
        self, *overrides: str, faults: Sequence[Fault] = (), restarts: int = 0, processes: int | None = None
    ) -> int:
        """Start the command and wait for it to end as it must not; its exit code."""
        process = self.start(*overrides, faults=faults, restarts=restarts, processes=processes)
        code = process.wait(timeout=DEADLINE_S)
        assert_alone(process)
        assert code != 0, self.said[-4000:]
        return code

    def until_step(self, process: subprocess.Popen[bytes] | Fork, step: int) -> None:
        """Wait until so many steps are done."""
        there = self.run / "status.json"
        wait_until(process, lambda: there.exists() and self.status["step"] >= step, self.log)

    def at(self, what: str, step: int, saved: int, **more: Any) -> Fault:
        """A fault of a step, which waits for a checkpoint that is being written in the background."""
        return {"what": what, "steps": [step], "once": str(checkpoint(self.run, saved)), **more}

    def refused(self, *overrides: str) -> str:
        """Begin the run, which has to end with a sentence and no traceback of the product's; the sentence."""
        before = len(self.said) if self.log.exists() else 0
        assert ended(self.log, "finetune", *self.arguments, *overrides, processes=self.processes) == MISTAKEN
        said = self.said[before:]
        assert "finetune/train.py" not in said
        (sentence,) = sentences(said)
        return sentence

    @property
    def sentences(self) -> list[str]:
        """What the command has said of the user's mistakes, over all starts."""
        return sentences(self.said)

    def go_on_from(self, run: Path, step: int) -> None:
        """Make this run a copy of another one of which nothing was saved after a step."""
        shutil.copytree(run, self.run)
        for later in (saved for saved in self.saved if saved > step):
            shutil.rmtree(checkpoint(self.run, later))
        (self.checkpoints / "latest").write_text(f"step-{step:08d}")

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What has happened, of a kind."""
        return [event for event in read_lines(self.run / "events.jsonl") if event["kind"] == kind]

    @property
    def resumed(self) -> list[int]:
        """The steps that were done wherever the run went on."""
        return [event["step"] for event in self.events("resumed")]

    @property
    def status(self) -> dict[str, Any]:
        """status.json."""
        status: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        return status

    @property
    def state(self) -> str:
        """How the run says that it is."""
        return str(self.status["state"])

    @property
    def saved(self) -> list[int]:
        """The steps of which there is a checkpoint under its final name."""
        names = (path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())


MakeScene = Callable[..., Scene]
"""(folder, *overrides, processes=1) -> a run that has not begun."""
Reference = Callable[..., Path]
"""(*overrides, processes=1) -> the folder of a run that nothing has befallen."""


def checkpoint(run: Path, step: int) -> Path:
    """The folder of a checkpoint."""
    return run / "checkpoints" / f"step-{step:08d}"


def sentences(said: str) -> list[str]:
    """The lines by which the command tells of the user's mistakes."""
    return [line for line in said.splitlines() if line.startswith("error: ")]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return read_lines(run / "metrics.jsonl")


def assert_continuous(run: Path, steps: int) -> None:
    """Every step stands once and in its place."""
    assert [line["step"] for line in metrics(run)] == list(range(1, steps + 1))


def assert_same(run: Path, reference: Path) -> None:
    """Nobody can tell the runs apart: metrics and weights to the last digit, and every draw of the ledger."""
    assert_continuous(run, len(metrics(reference)))
    lines, others = ([{key: line[key] for key in EXACT} for line in metrics(r)] for r in (run, reference))
    assert lines == others
    assert_same_draws(run, reference)
    for part in WEIGHTS:
        assert (run / "export" / part).read_bytes() == (reference / "export" / part).read_bytes(), part


def assert_same_draws(run: Path, reference: Path) -> None:
    """The ledgers are equal and complete."""
    ledger = read_ledger(reference / "ledger")
    assert ledger.num_rows == len(metrics(reference)) * BATCH
    assert read_ledger(run / "ledger").equals(ledger)


def assert_close(run: Path, reference: Path, relative: float) -> None:
    """The same draws, and losses that differ by rounding."""
    assert_continuous(run, len(metrics(reference)))
    assert_same_draws(run, reference)
    losses, others = ([line["loss"] for line in metrics(r)] for r in (run, reference))
    assert losses == pytest.approx(others, rel=relative)
