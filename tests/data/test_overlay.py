"""Overlays: tables of labels over what a source holds."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.indexing import index_folder
from finetune.data.config import OverlayConfig, SourceConfig
from finetune.data.index import Index
from finetune.data.labels import Labels, as_strings
from finetune.data.overlay import Overlay, added, strings, take_in
from finetune.errors import UserError
from tests.data_tools.test_indexing import picture, write_tar
from tests.helpers import data_config, open_data, sample_ids

STORED = Labels(("old", "grass"), ("an old caption",))
Make = Callable[..., Overlay]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Ten samples k0 … k9 in two shards, and k0 once more in the second."""
    for shard in range(2):
        members = [(f"k{shard * 5 + i}.png", picture(i)) for i in range(5)]
        write_tar(tmp_path / "shards" / f"{shard}.tar", members + ([("k0.png", picture(9))] if shard else []))
    return index_folder(tmp_path / "shards", "auto", workers=1)[0]


@pytest.fixture
def make(tmp_path: Path, index: Index) -> Make:
    """Take in an overlay of some lines, as JSONL or as parquet."""

    def take(lines: list[dict[str, Any]], suffix: str = "jsonl", **settings: Any) -> Overlay:
        path = tmp_path / f"overlay.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(lines), path)
        else:
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        config = OverlayConfig(str(path), **settings)
        return Overlay(tmp_path / "kept" / take_in(config, index, 0, tmp_path / "kept"))

    return take


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("tags", ["red fox, snow", ["red fox", "snow"]])
@pytest.mark.parametrize("named", [{"key": "k7"}, {"id": 1 << 32 | 2}])
def test_labels_by_key_or_id_replace_the_stored_ones(make: Make, suffix: str, tags: Any, named: dict[str, Any]) -> None:
    overlay = make([{**named, "tags": tags, "caption": " a fox "}], suffix)
    assert overlay.over(7, STORED) == Labels(("red fox", "snow"), ("a fox",))
    assert overlay.over(6, STORED) == STORED
    assert overlay.left_out.tolist() == []


def test_added_labels_follow_the_stored_ones(make: Make) -> None:
    overlay = make([{"key": "k3", "tags": "new, grass", "captions": ["a", "b"]}], mode="add")
    assert overlay.over(3, STORED) == Labels(("old", "grass", "new"), ("an old caption", "a", "b"))


def test_null_leaves_the_stored_labels_and_an_empty_list_removes_them(make: Make) -> None:
    overlay = make(
        [{"key": "k1", "tags": None, "caption": "x"}, {"key": "k2", "tags": [], "caption": None}, {"key": "k3"}]
    )
    assert overlay.over(1, STORED) == Labels(STORED.tags, ("x",))
    assert overlay.over(2, STORED) == Labels((), STORED.captions)
    assert overlay.over(3, STORED) == STORED


def test_of_several_lines_the_last_wins_and_lines_of_nothing_are_passed_over(make: Make) -> None:
    by_key = [{"key": key, "tags": tags} for key, tags in (("k1", "a"), ("none", "b"), ("k1", "c"), (None, "d"))]
    assert make(by_key).over(1, STORED).tags == ("c",)
    by_id = [{"id": i, "tags": tags} for i, tags in ((1, "a"), (99 << 32, "b"), (1, "c"), (5, "d"), (None, "e"))]
    assert make(by_id, "parquet").over(1, STORED).tags == ("c",)


def test_all_samples_of_a_key_get_its_labels(make: Make) -> None:
    overlay = make([{"key": "k0", "tags": "both"}])
    assert [overlay.over(row, STORED).tags for row in (0, 1, 10)] == [("both",), STORED.tags, ("both",)]


def test_scores_and_exclusions_leave_samples_out(make: Make) -> None:
    lines = [{"key": f"k{i}", "score": score} for i, score in enumerate((0.1, 0.5, None, 0.9))]
    assert make(lines, min_score=0.5).left_out.tolist() == [0, 10]
    assert make(lines).left_out.tolist() == []
    excluded = [{"key": "k4", "exclude": True}, {"key": "k5", "exclude": False}, {"key": "k6", "exclude": None}]
    assert make(excluded, "parquet").left_out.tolist() == [4]


def test_keys_that_look_like_dates_and_numbers_stay_text(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("2024-05-01.png", picture(1)), ("000007.png", picture(2))])
    index, _ = index_folder(tmp_path, "auto", workers=1)
    for row, key in enumerate(("2024-05-01", "000007")):
        (tmp_path / "o.jsonl").write_text(json.dumps({"key": key, "tags": "x"}))
        kept = take_in(OverlayConfig(str(tmp_path / "o.jsonl")), index, 0, tmp_path / "kept")
        assert Overlay(tmp_path / "kept" / kept).over(row, STORED).tags == ("x",)


def test_which_samples_have_labels(make: Make, index: Index) -> None:
    stored = [True] * 5 + [False] * 6
    lines = [{"key": "k1", "tags": []}, {"key": "k2", "tags": None}, {"key": "k7", "tags": ["a"]}]
    replaced = make(lines).have("tags", pa.array(stored).to_numpy(zero_copy_only=False))
    assert [i for i, have in enumerate(replaced) if have] == [0, 2, 3, 4, 7]
    added = make(lines, mode="add").have("tags", pa.array(stored).to_numpy(zero_copy_only=False))
    assert [i for i, have in enumerate(added) if have] == [0, 1, 2, 3, 4, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"key": "k1", "rating": 3}', "has the column 'rating': its columns are caption, captions, exclude"),
        ('{"tags": "a"}', "has neither a column key nor id"),
        ('{"key": "k1", "caption": "a", "captions": ["b"]}', "has both a column caption and captions"),
        ('{"key": "elsewhere", "tags": "a"}', "names no sample of"),
        ('{"key": "k1", "tags": 5}', "cannot be read: "),
        ('{"key": 5, "tags": "a"}', "cannot be read: "),
        ('{"id": -5, "tags": "a"}', "cannot be read: "),
        ('{"id": "x", "tags": "a"}', "cannot be read: "),
        ('{"key": "k1", "score": "good"}', "cannot be read: "),
        ('{"key": "k1", "exclude": "perhaps"}', "cannot be read: "),
        ('{"key": "k1", "tags": "a"}\n{"key": ', "cannot be read: "),
        ("", "cannot be read: "),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, index: Index, content: str, message: str) -> None:
    path = tmp_path / "overlay.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        take_in(OverlayConfig(str(path), min_score=0.5), index, 0, tmp_path / "kept")
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path, index: Index) -> None:
    (tmp_path / "o.jsonl").write_bytes(b'{"key": "k1", "caption": "caf\xe9"}')
    with pytest.raises(UserError, match=r"o\.jsonl cannot be read: .*UTF8"):
        take_in(OverlayConfig(str(tmp_path / "o.jsonl")), index, 0, tmp_path / "kept")


def test_long_lines_are_read(make: Make) -> None:
    caption = "x" * (2 << 20)
    assert make([{"key": "k1", "caption": caption}]).over(1, STORED).captions == (caption,)


def test_a_corrupt_parquet_file_is_refused(tmp_path: Path, index: Index) -> None:
    path = tmp_path / "overlay.parquet"
    pq.write_table(pa.table({"key": ["k1"] * 100, "tags": ["a"] * 100}), path)
    data = path.read_bytes()
    for broken in (b"junk", data[:-20], data[:100] + b"\xff" * 20 + data[120:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"cannot be read|names no sample"):
            take_in(OverlayConfig(str(path)), index, 0, tmp_path / "kept")


def test_categories_and_names_stay_one_for_each() -> None:
    labels = Labels(("sky", "someone"), ("a",), ("general", "artist"), ("human",), "x/1.jpg")
    assert added(labels, ["sky", "sea"], ["b", "c"]) == Labels(
        ("sky", "someone", "sea"),
        ("a", "b", "c"),
        ("general", "artist", ""),
        ("human", "overlay", "overlay"),
        "x/1.jpg",
    )
    assert added(Labels(("sky",)), ["sea"], ["b"]) == Labels(("sky", "sea"), ("b",))


def test_what_is_replaced_loses_its_categories(make: Make) -> None:
    overlay = make([{"key": "k1", "tags": "a, b"}])
    labels = Labels(("sky",), ("a",), ("general",), ("human",), "x/1.jpg")
    assert overlay.over(1, labels) == Labels(("a", "b"), ("a",), (), ("human",), "x/1.jpg")


def test_it_is_a_copy_and_pickles_as_its_path(make: Make, tmp_path: Path) -> None:
    overlay = make([{"key": "k1", "tags": "a"}])
    (tmp_path / "overlay.jsonl").unlink()
    assert len(pickle.dumps(overlay)) < 300
    again = pickle.loads(pickle.dumps(overlay))  # noqa: S301 (its own bytes)
    assert again.over(1, STORED) == overlay.over(1, STORED) == Labels(("a",), STORED.captions)


def test_another_content_is_another_copy(make: Make) -> None:
    first = make([{"key": "k1", "score": 0.1}], min_score=0.5)
    assert make([{"key": "k1", "score": 0.1}], min_score=0.5).path == first.path
    assert make([{"key": "k1", "score": 0.1}], min_score=0.4).path != first.path
    assert make([{"key": "k1", "score": 0.2}], min_score=0.5).path != first.path


def test_a_run_reads_labels_through_it(shards: Path, tmp_path: Path) -> None:
    index = Index.load(shards)
    lines = [{"key": index.key(0), "caption": "better"}, {"key": index.key(1), "exclude": True}]
    (tmp_path / "o.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    source = SourceConfig(str(shards), overlay=OverlayConfig(str(tmp_path / "o.jsonl")))
    config = data_config(shards)
    config.shards, config.sources = None, {"all": source}
    dataset = open_data(config, tmp_path / "kept")
    journal = dataset.began()
    assert dataset.sources(journal).read(0, 0, whole_shard=False).labels.captions == ("better",)
    drawn = {draw.sample for step in range(8) for mb in dataset.plan(journal).step(step) for draw in mb.draws}
    assert drawn == set(sample_ids(index)) - {sample_ids(index)[1]}


TEXTS = st.one_of(st.none(), st.text(alphabet="ab_, \n\t\u3000é\u200b", max_size=12))


@given(st.lists(TEXTS, min_size=1, max_size=20), st.booleans())
def test_all_values_at_once_come_out_as_each_alone(texts: list[str | None], split: bool) -> None:
    for values in (texts, [[text] * 2 if text else None for text in texts]):
        found = strings(pa.array(values, pa.string() if values is texts else pa.list_(pa.string())), split=split)
        expected = [None if value is None else list(as_strings(value, "", split=split)) for value in values]
        assert found.to_pylist() == expected


def test_ids_of_another_source_match_nothing(tmp_path: Path, shards: Path) -> None:
    lines = [{"id": 1 << 56 | 3, "tags": ["other"]}, {"id": 5, "tags": ["own"]}]
    (tmp_path / "o.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    index = Index.load(shards)
    overlay = Overlay(
        tmp_path / "kept" / take_in(OverlayConfig(str(tmp_path / "o.jsonl")), index, 0, tmp_path / "kept")
    )
    assert overlay.over(3, Labels(("mine",))) == Labels(("mine",))
    assert overlay.over(5, Labels(("mine",))) == Labels(("own",))
