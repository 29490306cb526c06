"""Faults in a run that knows nothing of them.

Python imports this file at its start where its folder is on PYTHONPATH. LONGHAUL_FAULTS holds a JSON list of faults.
`what` happens is one of those below, and it does so

- in the forward pass of some `steps`, as metrics.jsonl counts them, and of one of their micro-batches (`micro_batch`),
- or when a file whose path fits the pattern `sync` is about to be made durable,
- or when a function is called (`call`, as module:Class.function), in some `steps` or always.

`rank` restricts it to one rank; `attempt` to one of the launcher's attempts, the first unless said otherwise, null for
all of them. `once` is a path that has to be there first, for which it is waited (and to `wait` is all that happens
then); `until` is one that ends the fault.
"""

import errno
import fnmatch
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FAULTS: list[dict[str, Any]] = json.loads(os.environ.get("LONGHAUL_FAULTS", "[]"))
Patch = Callable[[ModuleType], None]


class Place:
    """Where the training loop is."""

    step = 0
    """The step that is being trained, counted from 1; 0 before the first."""
    micro_batch = 0


def here(fault: dict[str, Any]) -> bool:
    """Whether a fault is for this rank and this attempt of the launcher, and not over."""
    rank, attempt = int(os.environ.get("RANK", "0")), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    over = "until" in fault and Path(fault["until"]).exists()
    return fault.get("rank", rank) == rank and fault.get("attempt", 0) in (None, attempt) and not over


def due() -> list[dict[str, Any]]:
    """The faults of the forward pass that is about to be made."""
    place = (Place.step, Place.micro_batch)
    faults = [fault for fault in FAULTS if "call" not in fault and here(fault)]
    return [f for f in faults if any((step, f.get("micro_batch", 0)) == place for step in f.get("steps", ()))]


def happen(fault: dict[str, Any], descriptor: int | None = None) -> None:
    """What befalls a process at a point. `descriptor` is that of the file which is about to be made durable."""
    what = fault["what"]
    while "once" in fault and not Path(fault["once"]).exists():
        time.sleep(0.02)
    if what == "cut short and killed":
        assert descriptor is not None
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    elif what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
        time.sleep(fault.get("seconds", 0.0))
    elif what == "sleep":
        time.sleep(fault["seconds"])
    elif what in errno.errorcode.values():
        number = getattr(errno, what)
        raise OSError(number, os.strerror(number))
    elif what == "RuntimeError":
        raise RuntimeError("injected")


def patch_feed(module: ModuleType) -> None:
    """Know which step is being trained."""
    original = module.Batches.__init__

    def init(self: Any, batches: Any, reached: Callable[[int], None]) -> None:
        def reached_step(step: int) -> None:
            Place.step, Place.micro_batch = step + 1, 0
            reached(step)

        original(self, batches, reached_step)

    module.Batches.__init__ = init


def patch_step(module: ModuleType) -> None:
    """Forward passes: their pictures, their losses, their gradients, and what befalls the process meanwhile."""
    original, encode_pixels = module.TrainingStep.loss, module.encode_pixels

    def loss(self: Any, batch: Any) -> Any:
        faults = due()
        for fault in faults:
            happen(fault)
        value = original(self, batch)
        for fault in faults:
            if fault["what"] == "nan":
                value = value._replace(weighted=value.weighted * float("nan"))
            elif fault["what"] == "inf gradient":
                spoil(next(p for p in self._trainee.parameters() if p.requires_grad))
        Place.micro_batch += 1
        return value

    def encoded(*arguments: Any) -> Any:
        # Group norms would take a scaled picture back within the VAE, so what it gives is scaled.
        return encode_pixels(*arguments) * (100.0 if any(f["what"] == "x100" for f in due()) else 1.0)

    module.TrainingStep.loss, module.encode_pixels = loss, encoded


def spoil(parameter: Any) -> None:
    """Make the next gradient of a parameter infinite."""

    def infinite(gradient: Any) -> Any:
        handle.remove()
        return gradient + float("inf")

    handle = parameter.register_hook(infinite)


def patch_call(name: str, fault: dict[str, Any]) -> Patch:
    """Let a fault happen before every call of a function."""

    def patch(module: ModuleType) -> None:
        *owners, last = name.split(".")
        owner: Any = module
        for part in owners:
            owner = getattr(owner, part)
        original = getattr(owner, last)

        def called(*arguments: Any, **named: Any) -> Any:
            if here(fault) and Place.step in fault.get("steps", [Place.step]):
                happen(fault)
            return original(*arguments, **named)

        setattr(owner, last, called)

    return patch


def patch_sync() -> None:
    """Let faults happen before a file is made durable."""
    original = os.fsync

    def fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = str(Path(f"/proc/self/fd/{number}").readlink())
        for fault in FAULTS:
            if here(fault) and fnmatch.fnmatch(path, fault.get("sync", "")):
                happen(fault, number)
        original(descriptor)

    os.fsync = fsync


class Patching(MetaPathFinder):
    """Patches modules as soon as they have been imported."""

    def __init__(self) -> None:
        self._patches: dict[str, list[Patch]] = {"finetune.feed": [patch_feed], "finetune.step": [patch_step]}
        for fault in FAULTS:
            if "call" in fault:
                module, _, name = fault["call"].partition(":")
                self._patches.setdefault(module, []).append(patch_call(name, fault))

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module as it is found without this, with its patches to follow its execution."""
        if name not in self._patches:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            for patch in self._patches[name]:
                patch(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


if FAULTS:
    patch_sync()
    sys.meta_path.insert(0, Patching())
