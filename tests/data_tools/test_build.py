"""Packing folders into shards."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from typer.testing import CliRunner

from data_tools import build as build_module
from data_tools.__main__ import app
from data_tools.build import build
from finetune.data.index import Index
from finetune.data.labels import Labels
from finetune.errors import UserError
from tests.helpers import read_all


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A tree with every kind of side file, and some that have to be refused."""
    root = tmp_path / "pictures"
    (root / "sub.folder" / "deep").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for i in range(24):
        folder = root / ("sub.folder/deep" if i % 2 else "")
        image = Image.fromarray(noise.integers(0, 255, (150, 150, 3), dtype=np.uint8))
        image.save(folder / f"{i:02d}.{('png', 'jpg', 'webp')[i % 3]}", **({"lossless": True} if i % 3 == 2 else {}))
        if i % 4 == 0:
            (folder / f"{i:02d}.txt").write_text("dog, big dog, grass")
        if i % 4 == 1:
            (folder / f"{i:02d}.json").write_text(json.dumps({"tags": "cat sofa_bed", "caption": "a cat", "score": i}))
    (root / "broken.png").write_bytes(b"not a picture")
    (root / "phone.HEIC").write_bytes(b"needs a plugin")
    cut = (root / "00.png").read_bytes()
    (root / "cut.png").write_bytes(cut[: len(cut) // 2])
    Image.new("RGB", (8, 8)).save(root / "bad_json.png")
    (root / "bad_json.json").write_text("{")
    (root / "notes.md").write_text("not a picture either")
    return root


def pack(pictures: Path, out: Path, **options: object):  # type: ignore[no-untyped-def]
    return build(pictures, out, **{"shard_mib": 1, "text_as": "auto", "workers": 1, **options})  # type: ignore[arg-type]


def test_everything_arrives_and_what_cannot_is_named(pictures: Path, tmp_path: Path) -> None:
    index, refused = pack(pictures, tmp_path / "out")
    assert len(index) == 24
    assert {(r.key, r.reason.split(":")[0]) for r in refused} == {
        ("broken.png", "not a picture of any known format"),
        ("cut.png", "OSError"),
        ("phone.HEIC", "not a picture of any known format"),
        ("bad_json.png", "json"),
    }
    originals = {p.read_bytes(): p for p in pictures.rglob("*") if p.suffix in {".png", ".jpg", ".webp"}}
    assert set(index.width) == set(index.height) == {150}
    for image, labels, *_ in read_all(tmp_path / "out"):
        path = originals[image]  # the very bytes of the file
        expected = {
            0: (("dog", "big dog", "grass"), ()),
            1: (("cat", "sofa_bed"), ("a cat",)),
        }.get(int(path.stem) % 4, ((), ()))
        assert (labels.tags, labels.captions) == expected


def test_all_else_in_the_json_is_kept(pictures: Path, tmp_path: Path) -> None:
    pack(pictures, tmp_path / "out")
    fields = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            fields += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    assert {f["score"] for f in fields if "score" in f} == {1, 5, 9, 13, 17, 21}
    assert "sub.folder/deep/01.jpg" in {f["source"] for f in fields}


def test_categories_names_and_kohya_s_repeats_stay(tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "10_red fox"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "1.png")
    fields = {"tags": {"general": ["sky"], "artist": ["someone"]}, "caption": {"human": "a fox"}}
    (folder / "1.json").write_text(json.dumps(fields))
    index, _ = pack(tmp_path / "pictures", tmp_path / "out")
    assert index.repeats.tolist() == [10]
    (record,) = read_all(tmp_path / "out")
    assert record.labels == Labels(
        ("sky", "someone"), ("a fox",), ("general", "artist"), ("human",), "10_red fox/1.png"
    )


def test_masks_are_packed_with_their_pictures(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    masks = {"whole": (60, 40), "half": (30, 20), "broken": (60, 40), "aspect": (40, 60)}
    for colour, (name, size) in enumerate(masks.items()):
        Image.new("RGB", (60, 40), (colour, 0, 0)).save(pictures / f"{name}.png")
        Image.new("L", size, 9).save(pictures / f"{name}.mask.png")
    Image.new("RGB", (60, 40)).save(pictures / "without.jpg")
    cut = (pictures / "broken.mask.png").read_bytes()[:-30]
    (pictures / "broken.mask.png").write_bytes(cut)
    index, refused = pack(pictures, tmp_path / "out")
    assert {(r.key, r.reason.split(",")[0]) for r in refused} == {
        ("aspect.png", "mask: 40×60 pixels"),
        ("broken.png", "mask: OSError: image file is truncated"),
    }
    packed = {record.labels.source: record.mask for record in read_all(tmp_path / "out")}
    kept = {f"{name}.png": (pictures / f"{name}.mask.png").read_bytes() for name in ("whole", "half")}
    assert packed == {**kept, "without.jpg": None}
    urls = [str(tmp_path / "out" / shard.name) for shard in index.shards]
    members = [set(sample) for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    assert sum("mask.png" in names for names in members) == 2

    (pictures / "half.mask.png").unlink()
    pack(pictures, tmp_path / "out")
    assert [record.mask for record in read_all(tmp_path / "out")].count(None) == 2


def test_webdataset_reads_what_was_written(pictures: Path, tmp_path: Path) -> None:
    index, _ = pack(pictures, tmp_path / "out")
    urls = [str(tmp_path / "out" / shard.name) for shard in index.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [index.key(row) for row in range(len(index))]
    assert all("json" in s and {"png", "jpg", "webp"} & set(s) for s in samples)


def test_the_same_input_gives_the_same_bytes_from_any_number_of_processes(pictures: Path, tmp_path: Path) -> None:
    one, _ = pack(pictures, tmp_path / "one")
    two, _ = pack(pictures, tmp_path / "two", workers=2)
    assert len(one.shards) > 1
    assert one.shards == two.shards
    assert one.fingerprint == two.fingerprint


def test_a_build_goes_on_where_it_stopped(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, refused = pack(pictures, tmp_path / "whole")
    out = tmp_path / "out"
    plans = build_module.plan_shards(pictures, out, 2**20, "auto")
    out.mkdir()
    build_module.write_shard(plans[0], "auto")
    (out / "shard-00001.tar.tmp").write_bytes(b"half a shard")
    first = (out / "shard-00000.tar").stat()
    again, refused_again = pack(pictures, out)
    assert (out / "shard-00000.tar").stat().st_mtime_ns == first.st_mtime_ns
    assert again.fingerprint == whole.fingerprint
    assert refused_again == refused


def test_a_changed_side_file_is_packed_anew(pictures: Path, tmp_path: Path) -> None:
    pack(pictures, tmp_path / "out")
    (pictures / "00.txt").write_text("wolf, snow")
    pack(pictures, tmp_path / "out")
    assert ("wolf", "snow") in {record.labels.tags for record in read_all(tmp_path / "out")}


def test_a_folder_of_other_shards_is_left_alone(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds other\.tar, which is not of this build"):
        pack(pictures, tmp_path / "out")


def test_nothing_to_pack_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no pictures below"):
        pack(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="is not a folder"):
        pack(tmp_path / "nowhere", tmp_path / "out")


def test_the_command_sums_up(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["build", str(pictures), str(out), "--workers", "1", "--shard-mib", "1"])
    assert done.exit_code == 0, done.output
    assert "24 samples" in done.output
    assert "12 with tags, 6 with a caption, 0 with a mask" in " ".join(done.output.split())
    assert "4 refused" in done.output
    refused = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    assert {r["key"] for r in refused} == {"broken.png", "cut.png", "bad_json.png", "phone.HEIC"}
    assert len(Index.load(out)) == 24
