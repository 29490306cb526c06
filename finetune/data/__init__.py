"""From shards on disk to micro-batches: index, plan, buckets, prompts, images, source, loader."""
