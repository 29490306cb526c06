"""The real command with a compiler that leaves graphs as they are, as inductor takes minutes on a CPU; started by
test_compiled.py."""

import runpy
from functools import partial

import torch

if __name__ == "__main__":
    torch.compile = partial(torch.compile, backend="eager")  # type: ignore[assignment]
    runpy.run_module("finetune", run_name="__main__")
