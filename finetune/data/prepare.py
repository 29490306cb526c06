"""The plan of a recipe over an index."""

from finetune.data.buckets import bucket_sizes, merge_rare, nearest_bucket
from finetune.data.config import DataConfig
from finetune.data.index import Index
from finetune.data.plan import Plan


def build_plan(index: Index, data: DataConfig, *, micro_batch: int, global_batch: int, seed: int) -> Plan:
    """Sort the samples of an index into buckets and lay out the run's steps.

    Raises:
        UserError: there are fewer samples than a micro-batch holds.
    """
    sizes = bucket_sizes(data.buckets)
    buckets = merge_rare(nearest_bucket(index.width, index.height, sizes), sizes, micro_batch)
    return Plan(
        index.sample_ids,
        buckets,
        sizes,
        micro_batch=micro_batch,
        global_batch=global_batch,
        window_shards=data.window_shards,
        seed=seed,
    )
