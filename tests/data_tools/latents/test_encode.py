"""Encoding, and training from what was encoded: all but rounding is as it is with pictures."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_tools.build import build
from data_tools.indexing import index_folder, verify_index
from data_tools.latents import sets
from data_tools.loose import index_tree
from finetune.data.batch import Batch
from finetune.data.index import IMAGE, Index
from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.families import load_one
from finetune.model.vae import draw_latents, encode_pixels
from tests.data.test_loader import same, spoil
from tests.data.test_preparer import masked
from tests.encoded import batches_of, encoded, fed, recipe

STEPS = range(4)


def paired(
    shards: Path, model: Path, tmp_path: Path, steps: range = STEPS, dtype: str = "fp16", **settings: object
) -> list[tuple[Batch, Batch]]:
    """The micro-batches of some steps from pictures, and those from their latents."""
    live = recipe(shards, model, **settings)
    from_latents = recipe(shards, model, latents=str(tmp_path / "latents"), **settings)
    encoded(from_latents, tmp_path, dtype)
    feeds = (fed(live, tmp_path / "live"), fed(from_latents, tmp_path / "run"))
    return list(zip(*(batches_of(feed, steps) for feed in feeds), strict=True))


def check_alike(live: Batch, other: Batch) -> None:
    """All but the pictures is the same bit by bit."""
    assert live.moments is None
    assert other.pixels is None
    assert same(live._replace(pixels=None), other._replace(moments=None))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_batches_are_those_of_pictures_but_for_rounding(
    shards: Path, tiny_model: Path, tmp_path: Path, dtype: str
) -> None:
    vae = load_one(ModelConfig(path=str(tiny_model)), "vae", torch.float32)
    for live, other in paired(shards, tiny_model, tmp_path, dtype=dtype, flip=0.5, held_out=0.1):
        check_alike(live, other)
        expected = encode_pixels(vae, live.pixels, live.posterior_noise)
        found = draw_latents(vae, other.moments, other.posterior_noise)
        assert torch.allclose(found, expected, rtol=0, atol=2e-4 if dtype == "fp16" else 2e-3)
        assert not torch.allclose(found, expected.flip(-1), rtol=0, atol=2e-2)


@pytest.mark.parametrize("kind", ["alpha", "member"])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_masks_are_exact(tiny_model: Path, tmp_path: Path, kind: str, flip: float) -> None:
    build(masked(tmp_path / "pictures", 20), tmp_path / "shards", shard_mib=1, text_as="auto", workers=1)
    for live, other in paired(tmp_path / "shards", tiny_model, tmp_path, range(1), mask=kind, flip=flip):
        check_alike(live, other)
        assert live.mask.shape[2:] == live.noise.shape[2:]
        assert not torch.equal(live.mask, live.mask.flip(-1))


def test_loose_pictures_can_be_encoded(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "shards-pictures"
    for labels in (None, {"tags": ["another tag"], "caption": "another caption, of more letters"}):
        for side_file in pictures.glob("*.json") if labels else ():
            side_file.write_text(json.dumps(labels))
        index_tree(pictures, pictures, "auto", workers=1)
        for live, other in paired(pictures, tiny_model, tmp_path, range(1)):
            check_alike(live, other)


def test_a_picture_that_cannot_be_used_has_the_same_substitute(
    make_shards: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    folder = make_shards("spoiled")
    for row in (3, 17, 40):
        spoil(folder, row)
    bad = []
    for live, other in paired(folder, tiny_model, tmp_path):
        check_alike(live, other)
        bad += other.bad
    assert len({one.sample for one in bad}) == 3
    assert {one.reason for one in bad} == {"not a picture of any known format"}
    (latents,) = (tmp_path / "latents" / "shards").iterdir()
    refused = [json.loads(line) for line in (latents / "refused.jsonl").read_text().splitlines()]
    assert sorted(fault["key"] for fault in refused) == sorted(Index.load(folder).key(row) for row in (3, 17, 40))


def test_workers_change_nothing(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        encoded(recipe(shards, tiny_model, latents=str(tmp_path / str(workers)), workers=workers), tmp_path)
    alone, shared = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.tar")} for n in ("0", "2"))
    assert len(alone) == 2
    assert alone == shared


def test_each_phase_reads_the_latents_of_its_buckets(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = {"phases": 2, "latents": str(tmp_path / "latents")}
    outcomes = encoded(recipe(shards, tiny_model, **settings), tmp_path)
    assert [(o.shards, o.left, o.samples, o.faults) for o in outcomes] == [(2, 0, 60, 0)] * 2
    feed = fed(recipe(shards, tiny_model, **settings), tmp_path / "run")
    first = feed.plan.first_step(2)
    for steps in (range(2), range(first - 1, first), range(first, first + 2)):
        for batch in batches_of(feed, steps):
            width, height = batch.size
            assert (width * height > 64 * 64) == (steps.start == first)
            assert batch.moments.shape[1:] == (8, height // 8, width // 8)


def test_the_index_of_a_set_is_an_ordinary_one(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    (outcome,) = encoded(recipe(shards, tiny_model, latents=str(tmp_path / "latents"), held_out=0.1), tmp_path)
    pictures, latents = Index.load(shards), Index.load(outcome.folder)
    assert latents.keys.equals(pictures.keys)
    assert [shard.samples for shard in latents.shards] == [shard.samples for shard in pictures.shards]
    assert verify_index(latents, 1) == 2
    with pytest.raises(UserError, match="holds latents, whose index"):
        index_folder(outcome.folder, "auto", 1)
    span = latents.spans(0)[IMAGE]
    with Path(span.location).open("r+b") as file:
        file.seek(span.offset + span.size - 1)
        file.write(b"\x55")
    with pytest.raises(UserError, match=r"does not match its shard .* encode it again"):
        verify_index(latents, 1)


def test_samples_in_no_bucket_have_no_latents(tiny_model: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(24):
        Image.new("RGB", (40, 40) if i % 2 else (80, 80), (i, 0, 0)).save(pictures / f"{i}.png")
    build(pictures, tmp_path / "shards", shard_mib=1, text_as="auto", workers=1)
    data = recipe(tmp_path / "shards", tiny_model).data
    limited = {"buckets": replace(data.buckets, min_image_px=50), "latents": str(tmp_path / "latents")}
    (outcome,) = encoded(recipe(tmp_path / "shards", tiny_model, **limited), tmp_path)
    index, latents = Index.load(tmp_path / "shards"), Index.load(outcome.folder)
    assert outcome.samples == 12
    assert ((latents.numbers("image_size") > 0) == (index.width == 80)).all()
    fed(recipe(tmp_path / "shards", tiny_model, **limited), tmp_path / "run").sources.verify()


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}


def test_it_goes_on_where_it_stopped(
    shards: Path, make_shards: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    config = recipe(shards, tiny_model, latents=str(tmp_path / "latents"))
    (outcome,) = encoded(config, tmp_path)
    whole, contents = stamps(tmp_path), {p.name: p.read_bytes() for p in outcome.folder.glob("*.tar")}
    lost = next(outcome.folder.glob("*.tar"))
    lost.rename(lost.with_suffix(".part"))  # as a process leaves it that is killed, but for what is missing
    with lost.with_suffix(".part").open("r+b") as file:
        file.truncate(5000)
    (again,) = encoded(config, tmp_path)
    assert replace(again, folder=outcome.folder) == outcome
    assert not list(outcome.folder.glob("*.part"))
    assert {p.name: p.read_bytes() for p in outcome.folder.glob("*.tar")} == contents
    assert [name for name, stamp in stamps(tmp_path).items() if whole.get(name) != stamp] == [lost.name]

    more = make_shards("more", count=20) / "shard-00000.tar"
    more.rename(shards / "another.tar")
    index_folder(shards, "auto", workers=1)
    with pytest.raises(UserError, match=r"has grown by 1 shards that the latents in .* do not have: make them with"):
        fed(config, tmp_path / "run")
    before = stamps(outcome.folder)
    (grown,) = encoded(config, tmp_path)
    assert (grown.shards, grown.samples) == (3, 80)
    assert {name: stamp for name, stamp in stamps(outcome.folder).items() if name in before} == before
    fed(config, tmp_path / "run")


def test_what_another_process_encodes_is_left_to_it(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = recipe(shards, tiny_model, latents=str(tmp_path / "latents"))
    held: list[object] = []
    claim = sets.LatentSet.claim

    def held_back(self: sets.LatentSet, shard: int) -> object:
        if shard == 0 and not held:
            held.append(claim(self, 0))
        return claim(self, shard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets.LatentSet, "claim", held_back)
        (outcome,) = encoded(config, tmp_path)
    assert (outcome.shards, outcome.left) == (1, 1)
    assert not (outcome.folder / "index.arrow").exists()
    with pytest.raises(UserError, match=r"no index .*: make the latents of source 'shards' for these data\.buckets"):
        fed(config, tmp_path / "run")
    held.clear()  # its file is closed: the process is gone
    (outcome,) = encoded(config, tmp_path)
    assert (outcome.shards, outcome.left) == (2, 0)
    fed(config, tmp_path / "run")


def test_latents_that_were_made_otherwise_are_not_written_over(
    shards: Path, tiny_model: Path, tmp_path: Path, tiny_sd15: Path
) -> None:
    settings = {"latents": str(tmp_path / "latents")}
    encoded(recipe(shards, tiny_model, **settings), tmp_path)
    for config, dtype, named in (
        (recipe(shards, tiny_model, **settings), "bf16", "dtype was fp16, is bf16"),
        (recipe(shards, tiny_model, precision="bf16", **settings), "fp16", "precision was fp32, is bf16"),
        (recipe(shards, tiny_model, flip=0.5, **settings), "fp16", "mirrored was False, is True"),
        (recipe(shards, tiny_sd15, **settings), "fp16", "vae was "),
    ):
        with pytest.raises(UserError, match=f"holds latents that were made otherwise .{named}"):
            encoded(config, tmp_path, dtype)
    encoded(recipe(shards, tiny_model, precision="fp16", **settings), tmp_path)  # in which no VAE computes


def test_moments_that_cannot_be_stored_are_told(
    shards: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moments(vae: object, pixels: Tensor) -> Tensor:
        return torch.full((len(pixels), 8, 1, 1), 1e5)

    monkeypatch.setattr("data_tools.latents.encode.pixel_moments", moments)
    config = recipe(shards, tiny_model, latents=str(tmp_path / "latents"))
    with pytest.raises(UserError, match=r"moments that torch\.float16 cannot hold: use --dtype bf16"):
        encoded(config, tmp_path)


def test_phases_that_merge_the_same_buckets_otherwise_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Three tall pictures are too few for a micro-batch of 4, and enough for one of 2."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(23):
        Image.new("RGB", (64, 96) if i < 3 else (80, 80), (i, 0, 0)).save(pictures / f"{i}.png")
    build(pictures, tmp_path / "shards", shard_mib=1, text_as="auto", workers=1)
    config = recipe(tmp_path / "shards", tiny_model, phases=2, latents=str(tmp_path / "latents"))
    config.phases[1].buckets = {}
    with pytest.raises(UserError, match="phases of the same buckets merge rare ones of source 'shards' differently"):
        encoded(config, tmp_path)


def test_names_in_a_shard_are_numbers_whatever_the_keys(tiny_model: Path, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (96, 96)).save(picture, "PNG")
    folder = tmp_path / "evil"
    folder.mkdir()
    with tarfile.open(folder / "evil.tar", "w") as tar:
        for i in range(16):
            for suffix, data in (("png", picture.getvalue()), ("txt", b"evil")):
                info = tarfile.TarInfo(f"../../{i}/evil.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    index_folder(folder, "auto", 1)
    encoded(recipe(folder, tiny_model, latents=str(tmp_path / "latents")), tmp_path)
    (path,) = (tmp_path / "latents").rglob("*.tar")
    with tarfile.open(path) as tar:
        assert {name.partition(".")[0] for name in tar.getnames()} == {f"{i:09d}" for i in range(16)}
    assert not any("evil" in name for _, _, names in os.walk(tmp_path / "latents") for name in names)
    assert np.array_equal(Index.load(path.parent).numbers("text_size"), np.full(16, 4))
