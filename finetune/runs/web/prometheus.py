"""The figures of runs as Prometheus reads them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune.monitor.status import HEALTHS
from finetune.runs.view.figures import FIGURES, Figure
from finetune.runs.view.overview import Overview
from finetune.runs.view.tail import numbers
from finetune.runs.view.words import plain

KIND = CONTENT_TYPE_LATEST


def exposed(looks: Mapping[str, Overview]) -> bytes:
    """All figures of some runs, by the names that are their label `run`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Runs(looks))
    return generate_latest(registry)


class Runs(Collector):
    """What the files of some runs said when they were read."""

    def __init__(self, looks: Mapping[str, Overview]) -> None:
        self._looks = looks

    def collect(self) -> Iterator[Metric]:
        """Each figure of all runs."""
        health = GaugeMetricFamily("longhaul_health", "1 for the health that the run has", labels=["run", "health"])
        for run, look in self._looks.items():
            for name in HEALTHS:
                health.add_metric([run, name], float(look.health == name))
        yield health
        yield self._gauge("longhaul_heartbeat_timestamp_seconds", "last sign of life", "heartbeat")
        yield self._gauge("longhaul_step", "steps that are done", "step")
        yield self._gauge("longhaul_planned_steps", "steps that the run will have", "total_steps")
        for group, figures in FIGURES.items():
            for figure in figures:
                if figure.metric:
                    yield self._family(figure, figure.metric, f"{group}: {figure.label}")

    def _gauge(self, name: str, about: str, key: str) -> Metric:
        family = GaugeMetricFamily(name, about, labels=["run"])
        for run, look in self._looks.items():
            for value in numbers([look.values.get(key)]):
                family.add_metric([run], value)
        return family

    def _family(self, figure: Figure, name: str, about: str) -> Metric:
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = kind(name, about, labels=["run", *([figure.labelled] if figure.labelled else [])])
        for run, look in self._looks.items():
            for label, value in _parts(figure, look.values.get(figure.key)):
                family.add_metric([run, *label], value * figure.scale)
        return family


def _parts(figure: Figure, value: Any) -> Iterable[tuple[list[str], float]]:
    """The values of a figure with their labels; none where it is missing."""
    if not figure.labelled:
        return [([], number) for number in numbers([value])]
    named = value if isinstance(value, Mapping) else dict(enumerate(value, 1)) if isinstance(value, list) else {}
    return [([plain(str(name))], number) for name, one in named.items() for number in numbers([one])]
