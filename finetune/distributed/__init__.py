"""Processes: the only home of accelerate and DeepSpeed."""

from finetune.distributed.runtime import Distributed

__all__ = ["Distributed"]
