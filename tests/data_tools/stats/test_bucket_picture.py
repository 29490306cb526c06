"""Figures of buckets as tables and as a picture."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_tools.stats.bucket_picture import BARS_SHOWN, draw_buckets
from data_tools.stats.bucket_tables import ROWS_SHOWN, bucket_tables
from finetune.data.index import NUMBERS, SCHEMA, TARS, Shard, write_index
from tests.data_tools.stats.test_buckets import figures, recipe


def write_synthetic(folder: Path, count: int) -> None:
    """An index of pictures of all sizes, without the pictures."""
    folder.mkdir()
    random = np.random.default_rng(0)
    columns = {name: np.ones(count, dtype=kind.to_pandas_dtype()) for name, kind in NUMBERS.items()}
    columns |= {side: random.integers(30, 2000, count).astype(np.uint32) for side in ("width", "height")}
    named = {"key": pa.array([str(i) for i in range(count)], pa.large_string())}
    named["format"] = pa.array(["JPEG"] * count).dictionary_encode().cast(SCHEMA.field("format").type)
    table = pa.table({**named, **columns}, schema=SCHEMA)
    write_index(folder, TARS, [Shard("0.tar", 1, "", count)], [table])


@pytest.mark.parametrize(("step", "buckets"), [(64, 1), (4, 200)])
def test_tables_and_picture_with_few_and_many_buckets(tmp_path: Path, step: int, buckets: int) -> None:
    write_synthetic(tmp_path / "index", 20_000)
    settings = ["data.buckets.sizes_px=[[64,64]]"]
    if buckets > 1:
        sides = ",".join(f"[{64 + 8 * i},512]" for i in range(buckets))
        settings = [f"data.buckets.sizes_px=[{sides}]"]
    stats = figures(recipe(f"data.shards={tmp_path / 'index'}", *settings))
    assert sum(b.samples for b in stats.buckets) == stats.samples == 20_000
    draw_buckets(stats, tmp_path / "stats.png")
    with Image.open(tmp_path / "stats.png") as image:
        assert image.width < 2000
        assert 300 < image.height < 2000
    assert bucket_tables(stats)[1].row_count == min(len(stats.buckets), ROWS_SHOWN) + 1
    assert (len(stats.buckets) > BARS_SHOWN) == (buckets > 1)
