"""Processes: the only home of accelerate and DeepSpeed."""

from finetune.distributed.fragments import load_parameters
from finetune.distributed.runtime import Distributed

__all__ = ["Distributed", "load_parameters"]
