"""Shards on a web server, near and 30 ms away, next to the same shards on the local disk."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from finetune.feed import Feed
from finetune.model.text import PromptTokenizer
from tests.bench.feeding import IMAGES, STEPS, WORKERS, data_config, drain, opened, shards, tokenizer
from tests.bench.figure import Figure, Skipped
from tests.bench.pictures import kind
from tests.bench.timing import Cost, cost, in_turns, spread
from tests.servers import delaying_proxy, have_nginx, nginx

REPEATS = 3
DELAY_S = 0.03


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """Images per second of the loader with a cold cache, as a share of those from local shards.

    Args:
        work: folder for the shards and the caches.
        shared: the folder of real photographs; None for synthetic ones.

    Raises:
        Skipped: there is no nginx.
    """
    if not have_nginx():
        raise Skipped("nginx is not installed (apt-get install nginx-light)")
    folder, tokenize = shards(work, shared), tokenizer(work)
    local = opened(data_config(folder, work / "cache"), work)
    with nginx(folder) as near:
        for name, delay_s in (("data.http_vs_local", 0.0), ("data.http_30ms_vs_local", DELAY_S)):
            with delaying_proxy(near, delay_s) if delay_s else nullcontext(near) as url:
                yield _figure(name, f"{delay_s * 1000:.0f} ms away, {kind(shared)}", url, local, work / name, tokenize)


def _figure(name: str, what: str, url: str, local: Feed, work: Path, tokenize: PromptTokenizer) -> Figure:
    waits = []

    def remote(repeat: int) -> Cost:
        feed = opened(data_config(url, work / str(repeat)), work)  # a folder of its own: the cache is cold
        return cost(lambda: waits.append(drain(feed, range(STEPS), tokenize)))

    costs = in_turns([lambda repeat: cost(lambda: drain(local, range(STEPS), tokenize)), remote], REPEATS)[..., 0]
    ratios = costs[:, 0] / costs[:, 1]
    ours, theirs = IMAGES / np.median(costs, axis=0)
    return Figure(
        name,
        float(np.median(ratios)),
        "ratio",
        f"images/s from nginx {what}, cache cold, start included / from local shards, {WORKERS} workers; "
        f"{spread(ratios)}; {theirs:.0f} against {ours:.0f}; first batch after {np.median(waits):.2f} s",
    )
