"""Samples with the masks that the recipe asks for."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.build import build
from data_tools.indexing import index_folder
from finetune.data.config import DataConfig
from finetune.data.index import MASK, Index
from finetune.data.preparer import BadSample, Preparer, Sample
from finetune.data.prompts.config import CaptionsConfig
from finetune.data.prompts.prompter import Policy, Prompter
from finetune.errors import UserError
from tests.data.test_masks import check_agree, waves
from tests.data_tools.test_indexing import write_tar
from tests.helpers import WORDS, data_config, open_data

SEED, STEPS = 5, 3
CUT = {"flip": 0.5, "random_crop": True}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def masked(folder: Path, count: int = 12) -> Path:
    """Pictures that are as grey as their masks, and as their own alpha over black."""
    folder.mkdir()
    for i in range(count):
        size = ((240, 160), (160, 240), (200, 200))[i % 3]
        picture = Image.new("RGB", size, (255, 255, 255))
        picture.putalpha(waves(*size))
        (folder / f"{i}.png").write_bytes(png(picture))
        (folder / f"{i}.mask.png").write_bytes(png(waves(*size)))
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of pictures with masks, packed."""
    build(masked(tmp_path / "pictures"), tmp_path / "shards", shard_mib=1, text_as="auto", workers=1)
    return tmp_path / "shards"


def prepared(data: DataConfig, folder: Path) -> tuple[list[Sample], list[BadSample]]:
    """The samples of some steps, and those that were replaced."""
    opened = open_data(data, folder / "kept", seed=SEED)
    journal = opened.began()
    plan, sources = opened.plan(journal), opened.sources(journal)
    policies = [Policy(Prompter(CaptionsConfig(), SEED), 1.0)]
    preparer, bad = Preparer(plan, sources, data, policies, WORDS, SEED), list[BadSample]()
    steps = [(step, micro_batch) for step in range(STEPS) for micro_batch in plan.step(step)]
    return [s for step, m in steps for s in preparer.prepare(step, m, {}, bad)], bad


@pytest.mark.parametrize("kind", ["alpha", "member"])
def test_a_sample_s_mask_is_cut_and_mirrored_as_its_picture(shards: Path, kind: str) -> None:
    samples, bad = prepared(data_config(shards, mask=kind, background=[0, 0, 0], **CUT), shards)
    assert (len(samples), bad) == (STEPS * 16, [])
    for sample in samples:
        assert sample.mask is not None
        check_agree(sample.mask, sample.pixels)


def test_a_mask_changes_nothing_else_of_a_sample(shards: Path) -> None:
    plain, alpha, member = (
        prepared(data_config(shards, mask=kind, **CUT), shards)[0] for kind in ("none", "alpha", "member")
    )
    assert all(sample.mask is None for sample in plain)
    for one, *others in zip(plain, alpha, member, strict=True):
        for other in others:
            assert np.array_equal(one.pixels, other.pixels)
            assert one[1:-1] == other[1:-1]


def test_a_sample_without_a_mask_has_none(tmp_path: Path) -> None:
    pictures = masked(tmp_path / "pictures")
    Image.open(pictures / "0.png").convert("RGB").save(pictures / "0.png")
    for i in (3, 6, 9):
        (pictures / f"{i}.mask.png").unlink()
    build(pictures, tmp_path / "shards", shard_mib=1, text_as="auto", workers=1)
    for kind, without in (("alpha", 1), ("member", 3)):
        samples, bad = prepared(data_config(tmp_path / "shards", mask=kind), tmp_path)
        assert bad == []
        # The 12 samples are drawn once in each of 4 epochs.
        assert sum(sample.mask is None for sample in samples) == 4 * without


def test_a_broken_mask_makes_a_bad_sample(shards: Path) -> None:
    index = Index.load(shards)
    span = index.spans(4)[MASK]
    with Path(span.location).open("r+b") as file:
        file.seek(span.offset + span.size // 2)
        file.write(bytes(span.size - span.size // 2))
    samples, bad = prepared(data_config(shards, mask="member"), shards)
    assert {b.key for b in bad} == {index.key(4)}
    assert all(b.reason.startswith("mask: ") for b in bad)
    assert len(samples) == STEPS * 16
    assert all(sample.mask is not None for sample in samples)
    # Where it is not asked for, it is not looked at.
    assert prepared(data_config(shards, mask="none"), shards)[1] == []


def test_a_mask_of_another_aspect_makes_a_bad_sample(tmp_path: Path) -> None:
    members = [(f"{i}.{suffix}", png(waves(160, 160))) for i in range(8) for suffix in ("png", "mask.png")]
    write_tar(tmp_path / "0.tar", [*members[:-1], ("7.mask.png", png(waves(160, 100)))])
    index_folder(tmp_path, "auto", workers=1)
    _, bad = prepared(data_config(tmp_path, mask="member"), tmp_path)
    assert {(b.key, b.reason) for b in bad} == {
        ("7", "mask: 160×100 pixels, and its picture 160×160, which is another aspect")
    }


def test_masks_that_are_asked_for_and_not_there_are_told_at_the_start(tmp_path: Path) -> None:
    pictures = masked(tmp_path / "pictures")
    for path in pictures.glob("*.mask.png"):
        path.unlink()
    build(pictures, tmp_path / "shards", shard_mib=1, text_as="auto", workers=1)
    data = data_config(tmp_path / "shards", mask="member")
    with pytest.raises(UserError, match=r"data\.mask is member, but no sample has a mask: put KEY\.mask\.png beside"):
        prepared(data, tmp_path)
    prepared(replace(data, mask="alpha"), tmp_path)


def test_a_mask_comes_from_one_of_three(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.mask is 'grey': use one of none, alpha, member"):
        data_config(tmp_path, mask="grey")
