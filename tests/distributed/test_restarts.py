"""Workers that their launcher starts again."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
WORKER = """
import os, signal
from pathlib import Path
from finetune.distributed import Distributed
from finetune.strategy import StrategyConfig

distributed = Distributed(StrategyConfig(name="single", timeout_s=60))
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
ranks = distributed.gather(distributed.rank)
if attempt != "2" and distributed.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
distributed.barrier()
Path(f"{attempt}-{distributed.rank}").write_text(str(ranks))
distributed.close()
"""


def test_workers_that_are_started_again_find_each_other_and_not_the_dead(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("--max_restarts", "2", "worker.py"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name: path.read_text() for path in tmp_path.glob("?-?")} == {"2-0": "[0, 1]", "2-1": "[0, 1]"}
