"""All benchmarks, or those named: `python -m tests.bench [images read loader http plan resume …]`.

Prints a line of JSON per figure as it comes and a table at the end, and writes `.bench/bench.json`.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from tests.bench.figure import Figure, Skipped

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / ".bench" / "bench.json"
MODULES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
BARS = {
    "data.jpeg_768_vs_pillow": "≥ 2.5",
    "data.psnr_768_db": "≥ 42",
    "data.read_vs_webdataset": "≥ 5",
    "data.loader_efficiency": "≥ 0.9",
    "data.plan_3m3_s": "< 3",
    "data.plan_3m3_mib": "< 300",
    "data.plan_100m_s": "< 100",
    "data.plan_100m_mib": "< 3072",
    "data.resume_first_batch_s": "< 3",
    "data.http_vs_local": "≥ 0.7",
    "data.http_30ms_vs_local": "≥ 0.5",
    "step.overhead": "≤ 5 or 3%",
    "step.overhead_cpu": "≤ 5 or 3%",
    "step.data_wait_share": "< 0.01",
    "prompts.per_s": "≥ 8,000",
    "prompts.share_of_decoding": "≤ 0.01",
    "monitor.overhead": "≤ 5 or 2%",
    "monitor.overhead_cpu": "≤ 5 or 2%",
    "checkpoint.stall_vs_copy": "≤ 1.2",
    "gpu.sd15_512_latents_mfu": "≥ 0.45",
    "gpu.sd15_512_live_vs_latents": "≥ 0.6",
    "gpu.sd15_768_live_vs_latents": "≥ 0.6",
    "gpu.sd15_1024_live_vs_latents": "≥ 0.6",
    "gpu.vs_diffusers_loop": "≥ 1.3",
}
"""What the figures should meet; nothing here fails where they do not."""
PACKAGES = ("torch", "diffusers", "transformers", "bitsandbytes", "deepspeed")
"""Whose versions matter."""
WIDTH = 150


def main(names: list[str]) -> None:
    """Measure and report."""
    unknown = set(names) - set(MODULES)
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(MODULES)}")
    # Forked workers must not find the tokenizer's threads gone.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    machine = hardware()
    print(machine, flush=True)
    found = []
    for figure in measured(names or MODULES):
        print(json.dumps(figure._asdict(), ensure_ascii=False), flush=True)
        found.append(figure)
    if not found:
        return
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps([figure._asdict() for figure in found], indent=1, ensure_ascii=False), encoding="utf-8")
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table(found, machine))


def measured(names: list[str]) -> Iterator[Figure]:
    """The figures of some modules; what is skipped is said on stderr."""
    shared = SHARED_DATA if SHARED_DATA.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        for name in names:
            try:
                yield from importlib.import_module(f"tests.bench.bench_{name}").figures(Path(work), shared)
            except Skipped as reason:
                print(f"{name} is skipped: {reason}", file=sys.stderr, flush=True)


def hardware() -> str:
    """The machine in a line, and how busy it is with other things."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{model}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {cards()}{versions}, "
        f"load {os.getloadavg()[0]:.1f} before"
    )


def cards() -> str:
    """The first GPU with its driver and libraries, and a comma; nothing where there is none."""
    if not torch.cuda.is_available():
        return ""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return (
        f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)} with {memory:.0f} GiB, driver {driver}, CUDA "
        f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
    )


def table(figures: list[Figure], machine: str) -> Table:
    """All figures beside their bars."""
    shown = Table(title=machine, title_justify="left")
    for column in ("figure", "value", "unit", "bar", "detail"):
        shown.add_column(column, justify="right" if column == "value" else "left", no_wrap=column != "detail")
    for figure in figures:
        shown.add_row(figure.name, f"{figure.value:,.4g}", figure.unit, BARS.get(figure.name, ""), figure.detail)
    return shown


if __name__ == "__main__":
    main(sys.argv[1:])
