"""A folder as a run leaves it in its 41,237th step, made in a second: `python -m tests.runs.pretend FOLDER`."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

STEPS, TOTAL, BATCH, EVERY = 41_237, 154_000, 64, 10
STEP_S = 3.62
Line = dict[str, Any]


def pretend_run(folder: Path, steps: int = STEPS, **status: Any) -> Path:
    """Write a run's folder: status, metrics, intervals, validations, events, checkpoints and no pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    rng = np.random.default_rng(7)
    write(folder / "metrics.jsonl", metrics(rng, steps))
    write(folder / "intervals.jsonl", intervals(rng, steps))
    write(folder / "validation.jsonl", validations(rng, steps))
    write(folder / "events.jsonl", events(now, steps))
    for back in (4000, 2000, 0):
        checkpoint = folder / "checkpoints" / f"step-{(steps - back) // 1000 * 1000:08d}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "manifest.json").write_text("{}")
        os.utime(checkpoint / "manifest.json", (written := now - 0.25 * 3600 - back * STEP_S, written))
    said = {"state": "running", "step": steps, "total_steps": TOTAL, "name": folder.name, "host": "foxbox", "pid": 4127}
    beat = {
        "heartbeat": now - 2.0,
        "heartbeat_s": 5.0,
        "started": now - steps * STEP_S,
        "eta_s": (TOTAL - steps) * STEP_S,
    }
    (folder / "status.json").write_text(json.dumps({**said, **beat, "skipped_steps": 14, **status}))
    return folder


def write(path: Path, lines: Iterator[Line]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def loss_at(step: float) -> float:
    return 0.118 + 0.09 * math.exp(-step / 2500) + 0.02 * math.exp(-step / 20000)


def rate_at(step: int) -> float:
    return 1e-5 * min(1.0, step / 500) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / TOTAL)))


def metrics(rng: np.random.Generator, steps: int) -> Iterator[Line]:
    shape = np.linspace(2.4, 0.25, 10) ** 2 / 2
    for step in range(1, steps + 1):
        loss = loss_at(step) * float(np.exp(rng.normal(0, 0.09)))
        deciles = [round(float(loss * share * np.exp(rng.normal(0, 0.2))), 5) for share in shape]
        yield {
            "step": step,
            "samples_seen": step * BATCH,
            "epoch": round(step * BATCH / 3_306_000, 5),
            "loss": round(loss, 6),
            "grad_norm": round(float(0.21 * np.exp(rng.normal(0, 0.25)) * (1 + 2 * math.exp(-step / 800))), 5),
            "lr": {"unet": rate_at(step), "text": rate_at(step) / 4},
            "data_wait_s": 0.02,
            "step_s": round(STEP_S * float(np.exp(rng.normal(0, 0.02))), 4),
            "images_per_s": round(BATCH / STEP_S + float(rng.normal(0, 0.2)), 3),
            "loss_by_decile": deciles,
            "phase": 1,
        }


def intervals(rng: np.random.Generator, steps: int) -> Iterator[Line]:
    for step in range(EVERY, steps + 1, EVERY):
        saving = step % 1000 == 0
        seconds = EVERY * STEP_S * (1.12 if saving else 1.0) * float(np.exp(rng.normal(0, 0.015)))
        yield {
            "step": step,
            "seconds": seconds,
            "images_per_s": EVERY * BATCH / seconds,
            "step_s_p50": STEP_S,
            "step_s_p95": STEP_S * 1.07,
            "data_wait_share": 0.006 + 0.004 * float(rng.random()),
            "compute_share": 0.97 - 0.09 * saving,
            "saving_share": 0.09 * saving,
            "sampling_share": 0.012,
            "gpu_memory_peak_gib": 21.3,
            "mfu": 0.412,
            "eta_s": (TOTAL - step) * STEP_S,
            "epoch": step * BATCH / 3_306_000,
            "buckets": {"768x768": 212, "640x896": 176, "896x640": 121, "576x1024": 64, "1024x576": 41, "512x1152": 26},
            "prompt_tokens_mean": 88.4,
            "prompt_tokens_p95": 197,
            "empty_prompt_share": 0.1,
            "dropped_tag_share": 0.148,
            "truncated_share": 0.021,
            "bad_samples": {"truncated file": 31, "too many pixels": 4},
            "cache_hits": step * BATCH - 812,
            "cache_misses": 812,
            "checkpoint_age_s": 600.0,
            "checkpoint_s": 41.7,
            "updates": step - 14,
            "skipped": 14,
            "rollbacks": 1,
            "restarts": 3,
        }


def validations(rng: np.random.Generator, steps: int) -> Iterator[Line]:
    for step in range(0, steps + 1, 500):
        loss = 1.03 * loss_at(step) * float(np.exp(rng.normal(0, 0.004)))
        yield {"step": step, "loss": loss, "samples": 512, "ema_distance": 0.0031, "by_decile": [], "by_aspect": {}}


def events(now: float, steps: int) -> Iterator[Line]:
    told: list[tuple[float, Line]] = [
        (41.0, {"kind": "started", "step": 0}),
        (
            30.2,
            {"kind": "skipped", "step": 12_044, "reason": "loss is not finite", "keys": ["0412/88131", "0412/90027"]},
        ),
        (
            30.1,
            {
                "kind": "rolled back",
                "step": 12_000,
                "to": 12_210,
                "reason": "10 bad steps in a row",
                "superseded_steps": 54,
            },
        ),
        (
            14.5,
            {
                "kind": "data outage",
                "what": "https://data.example/shards/00781.tar",
                "reason": "503 Service Unavailable",
            },
        ),
        (14.1, {"kind": "data is back"}),
        (9.0, {"kind": "preempted", "reason": "stopped by SIGTERM"}),
        (8.8, {"kind": "resumed", "step": steps - 8600, "superseded_steps": 0}),
        (4.2, {"kind": "slow rank", "step": steps - 4100, "ranks": [{"rank": 1, "seconds": 5.9, "others": 3.6}]}),
        (
            1.9,
            {
                "kind": "bad sample",
                "key": "1203/55102",
                "reason": "truncated file",
                "shard": "01203.tar",
                "step": steps - 1500,
            },
        ),
        (1.1, {"kind": "tracker failed", "tracker": "wandb", "reason": "ConnectionError: no route to host"}),
        (
            0.25,
            {
                "kind": "checkpoint",
                "step": steps // 1000 * 1000,
                "name": f"step-{steps // 1000 * 1000:08d}",
                "seconds": 41.7,
            },
        ),
    ]
    for hours, event in told:
        if not 0 <= event.get("step", 0) <= steps:
            continue
        yield {"time": datetime.fromtimestamp(now - hours * 3600, UTC).isoformat(timespec="seconds"), **event}


def landscape(seed: int, size: int = 256) -> Image.Image:
    """A drawn picture: hills under a sun."""
    rng = np.random.default_rng(seed)
    sky, ground = rng.integers(90, 230, 3), rng.integers(20, 120, 3)
    fade = np.linspace(0, 1, size)[:, None, None]
    picture = Image.fromarray((sky * (1 - fade) + 255 * fade).repeat(size, 1).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    x, y, radius = (int(value) for value in rng.integers(size // 6, size // 2, 3))
    draw.ellipse((x, y, x + radius // 2, y + radius // 2), fill=(255, 236, 170))
    for depth in range(4):
        waves = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.5, 2.5, 3)
        across = np.linspace(0, 2 * np.pi, size)
        heights = sum(np.sin(across * speed + shift) for shift, speed in zip(*waves, strict=True))
        tops = size * (0.5 + 0.12 * depth) + heights * size * 0.035
        colour = tuple(int(c) for c in sky * (0.6 - 0.15 * depth) + ground * (0.3 + 0.12 * depth))
        draw.polygon([(0, size), *enumerate(tops.tolist()), (size, size)], fill=colour)
    return picture


def pretend_samples(folder: Path, step: int) -> None:
    """A grid of drawn pictures with captions."""
    captions = ["hills at noon", "a valley in the evening", "dunes, a low sun", "the sea on a grey day"]
    grid = Image.new("RGB", (528, 576), "white")
    draw = ImageDraw.Draw(grid)
    for i, (seed, caption) in enumerate(zip((3, 8, 21, 5), captions, strict=True)):
        left, top = 4 + i % 2 * 264, 4 + i // 2 * 288
        grid.paste(landscape(seed), (left, top))
        draw.text((left, top + 260), caption, fill="black")
    (folder / "samples").mkdir(exist_ok=True)
    grid.save(folder / "samples" / f"step-{step:08d}.png")


if __name__ == "__main__":
    runs = Path(sys.argv[1])
    pretend_samples(pretend_run(runs / "fox-768"), 41_000)
    pretend_run(runs / "fox-512", 1200, state="finished", step=1200, total_steps=1200)
    pretend_run(runs / "lora-test", 300, state="failed", reason="CUDA out of memory. Tried to allocate 2.1 GiB")
