"""What work takes of its device: seconds, without waiting for it while it runs, and memory."""

import time
from types import TracebackType
from typing import Any

import torch


class Stopwatch:
    """Adds up the time within it; a context that is entered again and again."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def __enter__(self) -> None:
        self._marks.append(self._mark())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._marks.append(self._mark())

    def seconds(self) -> float:
        """The sum; on a GPU to be asked once it has been waited for."""
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        if self._cuda:
            return float(sum(begin.elapsed_time(end) for begin, end in pairs)) / 1000.0
        return float(sum(end - begin for begin, end in pairs))

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def take_memory_peak(device: torch.device) -> int | None:
    """The most bytes of a GPU that this process's tensors have taken since the last call; None without a GPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
