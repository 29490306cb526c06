"""What each strategy's communication costs: two processes of a small UNet that add up 16 micro-batches a step."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from diffusers import UNet2DConditionModel

from finetune.distributed import Distributed
from finetune.optim.config import EmaConfig, OptimConfig, state_kind
from finetune.optim.optimizers import build_optimizer
from finetune.strategy import StrategyConfig
from tests.bench.figure import Figure
from tests.bench.timing import spread
from tests.traffic import Traffic

WORLD, ACCUMULATED, SIDE, WIDTH = 2, 16, 8, 64
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
REPEATS = 3


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """Each strategy's step over ddp's, in turns within one launch over gloo's loopback; and what its ranks send.

    Args:
        work: folder for the results.
        shared: not needed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, args=(port, work / "strategies.json"), nprocs=WORLD)  # type: ignore[no-untyped-call]
    found = json.loads((work / "strategies.json").read_text(encoding="utf-8"))
    ddp_s = np.array(found["step_s"]["ddp"])
    for strategy in STRATEGIES[1:]:
        step_s, sent = np.array(found["step_s"][strategy]), found["sent"][strategy]
        yield Figure(
            f"strategy.{strategy}_vs_ddp",
            float(np.median(step_s / ddp_s)),
            "ratio",
            f"time of a step, {ACCUMULATED} micro-batches on each of {WORLD} processes over gloo, "
            f"{np.median(step_s):.2f} s; {spread(step_s / ddp_s)}; a rank sends {sent['bytes']:.1f} bytes a parameter "
            f"and step in {sent['collectives']} collectives, under ddp {found['sent']['ddp']['bytes']:.1f}",
        )


def _rank(rank: int, port: int, results: Path) -> None:
    """Measure, as one of the ranks; the first writes what came of it."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in places.items()}, MASTER_ADDR="127.0.0.1")
    step_s: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
    sent = {}
    for _ in range(REPEATS):
        for strategy in STRATEGIES:
            trained = Trained(strategy)
            sent[strategy] = trained.sent()  # memory is touched for the first time
            began = time.perf_counter()
            trained.step()
            step_s[strategy].append(time.perf_counter() - began)
            trained.distributed._release()
    if rank == 0:
        results.write_text(json.dumps({"step_s": step_s, "sent": sent}), encoding="utf-8")
    trained.distributed.barrier()
    trained.distributed.close()


class Trained:
    """A small UNet under a strategy, on one rank."""

    def __init__(self, strategy: str) -> None:
        torch.manual_seed(0)
        self.distributed = Distributed(StrategyConfig(name=strategy, threads=1))
        unet = UNet2DConditionModel(
            sample_size=SIDE,
            block_out_channels=(WIDTH, 2 * WIDTH),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
        )
        self.parameters = sum(parameter.numel() for parameter in unet.parameters())
        optim = OptimConfig()
        self.model = self.distributed.prepare(
            unet,
            build_optimizer(optim, {"unet": list(unet.parameters())}),
            kind=state_kind(optim),
            micro_batch=1,
            global_batch=ACCUMULATED * WORLD,
            max_grad_norm=1.0,
            resting={},
            ema=EmaConfig(),
        )
        self.noised, self.text = torch.randn(1, 4, SIDE, SIDE), torch.randn(1, 77, WIDTH)

    def step(self) -> None:
        """An optimizer step."""
        for i in range(ACCUMULATED):
            with self.distributed.autocast():
                prediction = self.model(self.noised, torch.tensor([500]), encoder_hidden_states=self.text).sample
            self.distributed.backward(prediction.float().square().mean(), last=i == ACCUMULATED - 1)
        self.distributed.step([1e-5])

    def sent(self) -> dict[str, float]:
        """What a rank sends in a step."""
        with Traffic() as traffic:
            self.step()
        size = sum(one.per_rank(WORLD) for one in traffic.sent)
        return {"bytes": size / self.parameters, "collectives": len(traffic.sent)}
