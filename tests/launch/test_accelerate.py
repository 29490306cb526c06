"""accelerate's files, read by accelerate and started as they are, on the CPU."""

import json
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from tests.launch.conftest import LAUNCH, Start
from tests.processes import DEADLINE_S, finish

ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file"]
PROCESSES = {"one_gpu": 1, "two_gpus": 2, "eight_gpus": 8}
WORKER = """
from pathlib import Path
from finetune.distributed import Distributed
from finetune.strategy import StrategyConfig

distributed = Distributed(StrategyConfig(name="single", timeout_s=300))
ranks = distributed.gather(distributed.rank)
if distributed.is_main:
    Path("ranks").write_text(str(ranks))
distributed.close()
"""


def test_there_is_none_untested() -> None:
    assert {path.stem for path in LAUNCH.glob("*gpu*.yaml")} == set(PROCESSES)


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines) == (PROCESSES[name], 1)
    assert config.mixed_precision == "no"  # the recipe's affair, as DeepSpeed is
    assert config.deepspeed_config == {}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), [("one_gpu", "single"), ("two_gpus", "zero2")])
def test_a_run_is_trained_with_it(name: str, strategy: str, recipe: list[str], start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [*ACCELERATE, str(LAUNCH / f"{name}.yaml"), "--main_process_port", "0", "-m", "finetune"]
    process = start([*command, *recipe, f"strategy={strategy}"], log, {})
    finish(process, tmp_path / "runs" / "demo", log)
    (saved,) = (tmp_path / "runs" / "demo" / "checkpoints").glob("step-00000012")
    assert len(list(saved.glob("rank-*"))) == PROCESSES[name]


@pytest.mark.slow
@pytest.mark.faults
def test_eight_processes_meet(start: Start, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    command = [*ACCELERATE, str(LAUNCH / "eight_gpus.yaml"), "--main_process_port", "0", "worker.py"]
    process = start(command, tmp_path / "log", {})
    assert process.wait(DEADLINE_S) == 0, (tmp_path / "log").read_text()[-4000:]
    assert json.loads((tmp_path / "ranks").read_text()) == list(range(8))
