"""Where a device's time goes: its kernels by kind, and the gaps between them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "optimizer": r"multi_tensor|foreach|adam|kOptimizer|kPreconditionOptimizer|lerp",
    "attention": r"flash|fmha|attention|mha_|softmax",
    "norms": r"norm|moments|welford",
    "layouts": r"nchwToNhwc|nhwcToNchw|transpose|permute",
    "convolutions": r"conv|fprop|dgrad|wgrad|cudnn|implicit|winograd",
    "matrix products": r"gemm|gemv|nvjet|cutlass|cublas|xmma|addmm|\bmm\b|bmm|linear",
    "copies and casts": r"memcpy|memset|copy|\bcat|CatArray|fill|zero_|\bto\b",
    "sums": r"reduce|triton_red|triton_per|\bsum|\bmean",
    "elementwise": r"elementwise|triton_poi|silu|gelu|upsample|dropout|\b(add|sub|mul|div|sqrt|where|index|embedding)",
}
"""What the names of kernels of each kind have in them; the first that is found counts. On the CPU operators take the
place of kernels."""
OTHERS, IDLE = "others", "idle"


class Span(NamedTuple):
    """A kernel's run."""

    name: str
    began: float
    """Microseconds."""
    ended: float


class Profile(NamedTuple):
    """Shares of the time between the first kernel's beginning and the last one's end."""

    shares: dict[str, float]
    """By kind, the largest first, with what is idle. More than 1 together where kernels of two streams overlap."""
    others: dict[str, float]
    """Of what is of no kind, the largest first, by the kernel's name."""

    def __str__(self) -> str:
        told = ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())
        largest = "".join(f" ({name[:60]} {share:.1%})" for name, share in list(self.others.items())[:1])
        return f"{told}{largest and f'; largest of the others{largest}'}"


def profiled(steps: Callable[[], None], device: torch.device) -> Profile:
    """Profile some steps, which end with a wait for the device."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        steps()
    return shared_out(_device_spans(found) if cuda else _operator_spans(found))


def shared_out(spans: Iterable[Span]) -> Profile:
    """The profile of a stretch of time."""
    spans = sorted(spans, key=lambda span: span.began)
    whole = max(span.ended for span in spans) - spans[0].began
    times: dict[str, float] = {}
    others: dict[str, float] = {}
    for name, began, ended in spans:
        found = kind(name)
        times[found] = times.get(found, 0.0) + ended - began
        if found == OTHERS:
            others[name] = others.get(name, 0.0) + ended - began
    times[IDLE] = whole - busy(spans)
    return Profile(*({name: time / whole for name, time in _largest_first(each)} for each in (times, others)))


def kind(name: str) -> str:
    """What a kernel does, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), OTHERS)


def busy(spans: Iterable[Span]) -> float:
    """How long any of the kernels ran; they come in the order in which they began."""
    total, until = 0.0, float("-inf")
    for _, began, ended in spans:
        total += max(ended - max(began, until), 0.0)
        until = max(until, ended)
    return total


def _device_spans(found: profile) -> list[Span]:
    events = [event for event in found.events() or [] if event.device_type == DeviceType.CUDA]
    return [Span(event.name, event.time_range.start, event.time_range.end) for event in events]


def _operator_spans(found: profile) -> list[Span]:
    """Operators without the time that they spend in others, so that none lies within another."""
    return [span for event in found.events() or [] for span in _own_spans(event)]


def _own_spans(event: FunctionEvent) -> Iterator[Span]:
    began = event.time_range.start
    for child in sorted(event.cpu_children, key=lambda child: child.time_range.start):
        yield Span(event.name, began, child.time_range.start)
        began = child.time_range.end
    yield Span(event.name, began, event.time_range.end)


def _largest_first(times: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(times.items(), key=lambda item: -item[1])
