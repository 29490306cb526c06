"""Draws scaling.png and prints the tables of performance.md: `python docs/make_scaling.py`; with --check it only
compares what would be drawn. How a step's time grows with the number of GPUs is worked out here, on paper."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from pictures import draw_or_check

PICTURE = Path(__file__).with_name("scaling.png")
PARAMETERS = 975_493_572
"""SD1.5's UNet and text encoder, but for the layers that clip_skip 2 passes over."""
IMAGE_FLOPS = 6.4818e12
"""Forward and backward pass of SD1.5 at 768 px with a prompt of one chunk, as finetune.monitor.flops counts it."""
BACKWARD_SHARE = 2 / 3
"""Of a micro-batch's time: two products for each of the forward pass."""
FIRST_BUCKET = 25 * 2**20
"""Bytes of the bucket that is full last, and so has nothing to hide behind: torch's bucket_cap_mb."""
OPTIMIZER_BYTES = 28
"""Read and written for a parameter: its gradient for the norm (4) and to clip it (8), then gradient, weight and 8-bit
moments (10) of which weight and moments are written (6)."""
WAIT_S = 0.005
"""The step's one wait for the device, and what the host does before it has queued the next kernels."""
GB, TERA = 1e9, 1e12
WORLDS = (2, 8, 64, 512)
UNEQUAL = {
    (2, 16): 0.0008,
    (8, 16): 0.0014,
    (64, 16): 0.0018,
    (512, 16): 0.0017,
    (2, 256): 0.0001,
    (8, 64): 0.0004,
    (64, 8): 0.0027,
    (512, 1): 0.0219,
}
"""By (GPUs, micro-batches of each), the share of a step that ranks lose to those with larger pictures; measured by
tests/bench/bench_unequal_work.py with micro-batches of 8 photographs."""


@dataclass(frozen=True)
class Machine:
    """GPUs and what lies between them; speeds are those that are reached, not those on the data sheet."""

    node: int
    """GPUs of a node."""
    flops: float
    """Of one GPU, a second, at its assumed utilisation."""
    memory: float
    """Bytes a second of one GPU's memory."""
    near: float
    """Bytes a second that a GPU sends within a node, while it receives as many."""
    far: float
    """The same between nodes."""
    latency_s: float
    """Of one message."""
    most: int
    """GPUs that there may be."""


MACHINES = {
    "RTX 4090, PCIe 4.0 ×16 without P2P": Machine(8, 0.35 * 165.2 * TERA, 0.8 * 1008 * GB, 10 * GB, 0.0, 2e-5, 8),
    "H200, NVLink, InfiniBand 400 Gb/s a GPU": Machine(
        8, 0.45 * 989.4 * TERA, 0.8 * 4800 * GB, 0.8 * 450 * GB, 0.9 * 50 * GB, 1e-5, 512
    ),
    "H200, NVLink, Ethernet 100 Gb/s a node": Machine(
        8, 0.45 * 989.4 * TERA, 0.8 * 4800 * GB, 0.8 * 450 * GB, 0.85 * 12.5 / 8 * GB, 3e-5, 512
    ),
}


@dataclass(frozen=True)
class Step:
    """What a step's time is made of, in seconds."""

    work: float
    exposed: float
    """Reduction that no backward pass hides."""
    optimizer: float
    unequal: float
    wait: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.work + self.exposed + self.optimizer + self.unequal + self.wait

    @property
    def efficiency(self) -> float:
        """The share that is work."""
        return self.work / self.total


def ring_s(size: float, ranks: int, speed: float, latency_s: float) -> float:
    """An all-reduce of `size` bytes round a ring (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009): each rank
    sends 2 (ranks − 1) messages of size / ranks."""
    return 2 * (ranks - 1) * (size / ranks / speed + latency_s) if ranks > 1 else 0.0


def reduction_s(machine: Machine, gpus: int, size: float) -> float:
    """An all-reduce: scattered and gathered within a node, and each GPU's share all-reduced between nodes, as NCCL does
    with a network card for each GPU."""
    within = min(gpus, machine.node)
    nodes = gpus // within
    between = ring_s(size / within, nodes, machine.far, machine.latency_s) if nodes > 1 else 0.0
    return ring_s(size, within, machine.near, machine.latency_s) + between


def step(machine: Machine, gpus: int, accumulated: int, *, micro_batch: int = 8) -> Step:
    """A step under ddp: gradients in fp32, reduced beside the last of the `accumulated` backward passes."""
    micro_batch_s = micro_batch * IMAGE_FLOPS / machine.flops
    size = 4 * PARAMETERS
    reduced = reduction_s(machine, gpus, size)
    work, lost = accumulated * micro_batch_s, UNEQUAL.get((gpus, accumulated), 0.0)
    return Step(
        work=work,
        exposed=max(reduced - BACKWARD_SHARE * micro_batch_s, reduced * FIRST_BUCKET / size),
        optimizer=OPTIMIZER_BYTES * PARAMETERS / machine.memory,
        unequal=work * lost / (1.0 - lost),
        wait=WAIT_S,
    )


def accumulations(gpus: int) -> dict[str, int]:
    """Micro-batches of each GPU: of 4,096 samples over all GPUs, and of 128 for each."""
    return {"strong": 512 // gpus, "weak": 16}


def curves() -> dict[str, list[float]]:
    """The efficiency by "kind machine", at one GPU and at those of WORLDS that the machine may have."""
    return {
        f"{kind} {name}": [
            step(machine, gpus, accumulations(gpus)[kind]).efficiency for gpus in (1, *WORLDS) if gpus <= machine.most
        ]
        for kind in ("strong", "weak")
        for name, machine in MACHINES.items()
    }


def rows() -> list[str]:
    """A row of the page's table for each machine, kind and number of GPUs."""
    found = []
    for name, machine in MACHINES.items():
        for kind in ("strong", "weak"):
            for gpus in (world for world in WORLDS if world <= machine.most):
                count = accumulations(gpus)[kind]
                s = step(machine, gpus, count)
                found.append(
                    f"| {name} | {kind} | {gpus} | {count} | {s.work:.2f} | "
                    f"{reduction_s(machine, gpus, 4 * PARAMETERS):.3f} | {s.exposed:.3f} | {s.optimizer:.3f} | "
                    f"{s.unequal:.3f} | {8 * count * gpus / s.total:,.0f} | {s.efficiency:.1%} |"
                )
    return found


def draw(found: Mapping[str, Sequence[float]]) -> Figure:
    """A panel for each kind of scaling, a line for each machine."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 4), sharey=True, layout="constrained")
    titles = {"strong": "strong: 4,096 samples a step", "weak": "weak: 128 samples a step and GPU"}
    for panel, (kind, title) in zip(panels, titles.items(), strict=True):
        for name in MACHINES:
            values = found[f"{kind} {name}"]
            panel.plot((1, *WORLDS)[: len(values)], values, marker="o", markersize=4, linewidth=1.5, label=name)
        panel.set(title=title, xlabel="GPUs", xscale="log", ylim=(0, 1.02), xticks=(1, *WORLDS))
        panel.set_xticklabels(str(gpus) for gpus in (1, *WORLDS))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of the step that is work")
    panels[1].legend(loc="lower left", fontsize="small")
    return figure


if __name__ == "__main__":
    if "--check" not in sys.argv:
        print(*rows(), sep="\n")
    draw_or_check(PICTURE, curves(), draw)
