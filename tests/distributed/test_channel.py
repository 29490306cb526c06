"""Collectives beside the training's, in real processes."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from finetune.checkpoint.config import CheckpointConfig
from finetune.checkpoint.store import CheckpointStore, newest_checkpoint
from finetune.distributed.channel import SideChannel
from tests.ranks import forked

ROUNDS = 50


def test_alone_there_is_nobody_to_ask() -> None:
    channel = SideChannel(0, 1)
    assert channel.is_main
    assert channel.gather("a") == ["a"]


def test_threads_and_training_do_not_get_each_others_values(tmp_path: Path) -> None:
    def act(rank: int) -> None:
        channel, found = SideChannel(rank, 2), list[Any]()

        def beside() -> None:
            for i in range(ROUNDS):
                time.sleep(0.001 * (rank == 0))
                found.append(channel.gather((rank, "x" * (i + 1))))

        thread = threading.Thread(target=beside)
        thread.start()
        for i in range(ROUNDS):
            time.sleep(0.001 * (rank == 1))
            total = torch.tensor([float(i + rank)])
            dist.all_reduce(total)
            assert total.item() == 2 * i + 1
        thread.join()
        assert found == [[(0, "x" * (i + 1)), (1, "x" * (i + 1))] for i in range(ROUNDS)]

    assert forked(2, act, tmp_path / "rendezvous") == [0, 0]


def test_ranks_save_while_they_train(tmp_path: Path) -> None:
    def act(rank: int) -> None:
        store = CheckpointStore(tmp_path / "checkpoints", CheckpointConfig(), SideChannel(rank, 2))
        weights = torch.zeros(100_000)
        for step in range(1, 31):
            share = torch.full_like(weights, float(rank))
            dist.all_reduce(share)
            weights += share
            if step % 10 == 0:
                store.save(step, {"weights": weights.clone()}, {"by": rank})
        checkpoint = store.wait()
        assert checkpoint is not None
        assert checkpoint.step == 30

    assert forked(2, act, tmp_path / "rendezvous") == [0, 0]
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")
    assert (checkpoint.step, checkpoint.world, checkpoint.meta) == (30, 2, {"by": 0})
    for rank in range(2):
        assert (checkpoint.read(rank)["weights"] == 30.0).all()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_while_saving_is_noticed_by_the_other(tmp_path: Path, victim: int) -> None:
    def act(rank: int) -> None:
        store = CheckpointStore(tmp_path / "checkpoints", CheckpointConfig(), SideChannel(rank, 2))
        store.save(5, {"weights": torch.zeros(10)}, {})
        store.wait()
        if rank == victim:
            torch.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store.save(10, {"weights": torch.zeros(10)}, {})
        with pytest.raises(RuntimeError):
            store.wait()

    ended = forked(2, act, tmp_path / "rendezvous")
    assert ended[victim] == -signal.SIGKILL
    assert ended[1 - victim] == 0
    assert newest_checkpoint(tmp_path / "checkpoints").step == 5
