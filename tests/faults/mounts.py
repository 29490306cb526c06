"""File systems that are small or read-only, where the tests may mount some."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest


def mounted(stack: ExitStack, folder: Path, *arguments: str) -> None:
    """Mount something on a folder until the stack is closed; skips the test where that is not allowed.

    Args:
        arguments: those of mount(8) before the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    # Lazily, since what a failed test has left may still use it.
    stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
