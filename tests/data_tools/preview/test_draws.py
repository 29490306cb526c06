"""What a preview shows is what training does."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_tools.indexing import index_folder
from data_tools.loose import index_tree
from data_tools.preview.draws import THUMBNAIL_PX, Learned, Shown, collect
from finetune.data.plan import Draw
from finetune.data.preparer import Sample
from finetune.errors import UserError
from finetune.recipe_data import Opened
from tests.data_tools.preview.conftest import Look, Open, noise, write_shard
from tests.data_tools.test_indexing import write_tar

TAGS = [f"tag {number}" for number in range(8)]
LABELS = [{"tags": TAGS, "caption": f"picture {number}"} for number in range(12)]
DRAWN = ("captions.drop=0.2", "captions.tags.drop=0.3", "data.flip=0.5", "data.random_crop=true")
EPOCHS = 3


def learned(shown: Shown) -> Learned:
    assert shown.learned
    return shown.learned


def trained(opened: Opened, epochs: int) -> dict[tuple[int, int], Sample]:
    """What a loader prepares, by (sample, epoch)."""
    found = {}
    for step in range(opened.plan.steps(epochs)):
        for micro_batch in opened.plan.step(step):
            samples = opened.preparer.prepare(step, micro_batch, {}, [])
            found |= {(d.sample, d.epoch): s for d, s in zip(micro_batch.draws, samples, strict=True) if not d.repeat}
    return found


def test_prompts_and_crops_are_those_that_are_trained(opened: Open) -> None:
    config, found = opened(LABELS, *DRAWN)
    loaded, seen = trained(found, EPOCHS), collect("demo", config, found, draws=EPOCHS)
    assert len(loaded) == EPOCHS * len(seen.samples) == EPOCHS * len(LABELS)
    for shown in seen.samples:
        for drawn in learned(shown).draws:
            sample = loaded[shown.sample, drawn.epoch]
            assert drawn.prompt.text == sample.prompt
            left = drawn.crop.scaled_width - drawn.crop.left - drawn.crop.width if drawn.mirrored else drawn.crop.left
            assert sample.size_and_crop[2:] == (drawn.crop.top, left, drawn.crop.height, drawn.crop.width)
        assert shown.bucket == learned(shown).picture.size
        assert np.array_equal(np.asarray(learned(shown).picture), loaded[shown.sample, 0].pixels)


@pytest.mark.parametrize("flip", [0, 1])
def test_what_does_not_count_is_grey(tmp_path: Path, look: Look, flip: int) -> None:
    left = Image.new("L", (96, 96))
    left.paste(255, (0, 0, 48, 96))
    buffer = io.BytesIO()
    left.save(buffer, "PNG")
    members = [(f"{i}.png", noise(i, (96, 96))) for i in range(2)]
    write_tar(tmp_path / "masked" / "0.tar", [*members, ("0.mask.png", buffer.getvalue())])
    index_folder(tmp_path / "masked", "auto", workers=1)
    settings = (f"data.flip={flip}", "data.buckets.resolution_px=96")
    plain = look(tmp_path / "masked", *settings, draws=1).samples
    first, second = look(tmp_path / "masked", *settings, "data.mask=member", draws=1).samples
    assert (learned(first).counts, learned(second).counts) == (0.5, None)
    assert learned(plain[0]).counts is None
    before, after = (np.asarray(learned(shown).picture).astype(int) for shown in (plain[0], first))
    kept, gone = (slice(48, None), slice(48)) if flip else (slice(48), slice(48, None))
    assert np.array_equal(after[:, kept], before[:, kept])
    # Three quarters of the way from any colour to grey, and of no colour.
    assert np.abs(after[:, gone] - 128).max() <= 32
    assert np.ptp(after[:, gone], axis=2).max() == 0
    assert np.array_equal(np.asarray(learned(second).picture), np.asarray(learned(plain[1]).picture))


def test_a_draw_has_the_step_with_which_its_epoch_begins(opened: Open) -> None:
    config, found = opened(LABELS, "captions.tags={shuffle: false, warmup_steps: 24}", "captions.mix={caption: 0}")
    for shown in collect("demo", config, found, draws=EPOCHS).samples:
        record = found.sources.read(shown.sample, 0, whole_shard=False)
        expected = [found.preparer.prompt(record, Draw(shown.sample, epoch, 0), 12 * epoch) for epoch in range(EPOCHS)]
        assert [drawn.prompt for drawn in learned(shown).draws] == expected
        assert [len(drawn.prompt.tags) for drawn in learned(shown).draws] == [1, 4, 8]


def test_large_pictures_are_shown_smaller(tmp_path: Path, look: Look) -> None:
    shards = write_shard(tmp_path / "large", [{}, {}], [(900, 600), (600, 900)])
    sizes = ["data.buckets.resolution_px=512", "data.buckets.max_side_px=768", "data.buckets.step_px=64"]
    wide, tall = look(shards, *sizes, draws=1).samples
    assert wide.bucket
    assert learned(wide).picture.size == (THUMBNAIL_PX, round(THUMBNAIL_PX * wide.bucket[1] / wide.bucket[0]))
    assert learned(tall).picture.height == THUMBNAIL_PX


def test_samples_are_spread_or_named(look: Look) -> None:
    spread = look(LABELS, samples=4, draws=1)
    assert [shown.key for shown in spread.samples] == ["001", "004", "007", "010"]
    named = look(LABELS, keys=["007", "id:2", "007"], draws=1)
    assert [(shown.key, shown.sample) for shown in named.samples] == [("007", 7), ("002", 2)]
    with pytest.raises(UserError, match=r"no sample has the key 'nothing': keys are like '000'"):
        look(LABELS, keys=["001", "nothing"])


def test_only_what_a_sample_has_is_in_effect(look: Look) -> None:
    labels: list[dict[str, Any]] = [{"tags": TAGS}, {"caption": {"blip": "a dog"}}, {}, LABELS[0]]
    seen = look(labels, "captions.mix={tags: 1, caption: 3}", "++captions.caption.weights={blip: 0}", draws=1)
    assert seen.asked["shards"].forms == {"tags": 0.25, "caption": 0.75}
    assert [learned(shown).forms for shown in seen.samples] == [
        {"tags": 1.0},
        {"missing": 1.0},
        {"missing": 1.0},
        {"tags": 0.25, "caption": 0.75},
    ]


def test_a_source_has_its_own_policy(tmp_path: Path, look: Look) -> None:
    for name in ("one", "two"):
        write_shard(tmp_path / name, LABELS[:4])
    sources = f"{{one: {{path: {tmp_path}/one}}, two: {{path: {tmp_path}/two, captions: {{prefix: two}}, repeats: 2}}}}"
    seen = look(tmp_path, "data.shards=null", f"data.sources={sources}", samples=2, draws=2)
    first, second = seen.samples
    assert (first.source, second.source) == ("one", "two")
    assert (first.per_epoch, second.per_epoch) == (1.0, 2.0)
    assert (seen.asked["one"].captions.prefix, seen.asked["two"].captions.prefix) == ("", "two")
    assert all(drawn.prompt.text.startswith("two ") for drawn in learned(second).draws)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("data.buckets.min_image_px=50", "shorter side below min_image_px (50)"),
        ("data.buckets.no_upscale=true", "too small for every bucket without upscaling"),
        ("data.exclude={}/exclude.txt", "named in data.exclude"),
        ("overlay", "left out by the overlay"),
    ],
)
def test_a_sample_that_is_left_out_says_why(tmp_path: Path, look: Look, setting: str, reason: str) -> None:
    shards = write_shard(tmp_path / "shards", [{"tags": ["dog"]}, {}, {}], [(40, 12), (96, 96), (96, 96)])
    (tmp_path / "exclude.txt").write_text("000\n")
    (tmp_path / "overlay.jsonl").write_text('{"key": "000", "exclude": true}\n')
    settings = [setting.format(tmp_path)]
    if setting == "overlay":
        source = f"{{a: {{path: {shards}, overlay: {{path: {tmp_path}/overlay.jsonl}}}}}}"
        settings = ["data.shards=null", f"data.sources={source}"]
    (shown,) = look(shards, *settings, keys=["000"]).samples
    assert (shown.unused, shown.learned) == (reason, None)
    assert (shown.width_px, shown.height_px, shown.labels.tags) == (40, 12, ("dog",))
    assert {shown.key for shown in look(shards, *settings, draws=1).samples} == {"001", "002"}


def test_a_sample_of_a_rare_bucket_says_why(tmp_path: Path, look: Look) -> None:
    shards = write_shard(tmp_path / "shards", [{}] * 5, [(48, 16), *[(96, 96)] * 4])
    batch = ("train.micro_batch=4", "train.global_batch=4")
    (shown,) = look(shards, "data.buckets.no_upscale=true", *batch, keys=["000"]).samples
    assert shown.unused == "in a rare bucket, and too small for those that are kept"


def test_what_cannot_be_used_says_why(tmp_path: Path, look: Look) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    for name in ("cut", "good", "labels"):
        (loose / f"{name}.png").write_bytes(noise(1, (64, 64)))
        (loose / f"{name}.json").write_text('{"tags": ["dog"]}')
    index_tree(loose, loose, "auto", 1)
    (loose / "labels.json").write_text('{"tags": [dog"]}')
    (loose / "cut.png").write_bytes(noise(1, (64, 64))[:900].ljust(len(noise(1, (64, 64))), b"\0"))
    by_key = {Path(shown.key).stem: shown for shown in look(loose, draws=1).samples}
    assert by_key["good"].learned
    assert "it cannot be decoded: " in by_key["cut"].unused
    assert by_key["cut"].labels.tags == ("dog",)
    assert "its labels cannot be read: json" in by_key["labels"].unused


def test_labels_are_fit_to_be_printed(tmp_path: Path, look: Look) -> None:
    labels = {"tags": ["a\0\x1b[31mb", "\ud800"], "caption": {"n\x07": "one \x1b\n\n two"}, "source": "\x1bx"}
    fields = json.dumps(labels).encode()
    write_tar(tmp_path / "odd" / "0.tar", [("000.png", noise(1, (64, 64))), ("000.json", fields)])
    index_folder(tmp_path / "odd", "auto", workers=1)
    (shown,) = look(tmp_path / "odd", draws=1).samples
    assert shown.labels.tags == ("a [31mb", "\ufffd")
    assert (shown.labels.captions, shown.labels.caption_names) == (("one\ntwo",), ("n",))
    assert shown.labels.source == "x"


def test_a_shard_that_is_missing_is_a_mistake_and_no_wait(opened: Open, tmp_path: Path) -> None:
    config, found = opened(LABELS)
    (tmp_path / "shards" / "0.tar").unlink()
    with pytest.raises(UserError, match=r"0\.tar"):
        collect("demo", config, found)
