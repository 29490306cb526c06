"""A manifest is taken for nobody's in particular."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.checkpoint.manifest import Marks, manifest_text, parse_manifest, readable

FOLDER = Path("step-00000005")
FILES = {f"rank-0000{rank}.pt": {"size": 10 + rank, "sha256": f"{rank}" * 64} for rank in range(2)}
GOOD = json.loads(manifest_text(5, FILES, {"seed": 1}, Marks(True, 0.5)))


def test_a_manifest_says_what_it_was_told() -> None:
    found = parse_manifest(json.dumps(GOOD), FOLDER)
    assert (found.folder, found.step, found.world, found.meta, found.files) == (FOLDER, 5, 2, {"seed": 1}, FILES)
    assert found.marks == Marks(phase_border=True, validation_loss=0.5)
    assert found.size == 21


def test_a_manifest_of_before_there_were_marks() -> None:
    assert parse_manifest(json.dumps({k: v for k, v in GOOD.items() if k != "marks"}), FOLDER).marks == Marks()


def file_of(name: str = "rank-00001.pt", **facts: Any) -> dict[str, Any]:
    """Two files, the second under a name and with facts of its own."""
    return {"rank-00000.pt": FILES["rank-00000.pt"], name: {**FILES["rank-00001.pt"], **facts}}


@pytest.mark.parametrize(
    "changed",
    [
        {"step": 6},
        {"step": -5},
        {"step": "5"},
        {"step": True},
        {"world": 1},
        {"world": 3},
        {"world": 0, "files": {}},
        {"world": 10**12},
        {"world": 2.0},
        {"meta": None},
        {"files": []},
        {"files": file_of("../../rank-00001.pt")},
        {"files": file_of("/etc/passwd")},
        {"files": file_of("rank-00002.pt")},
        {"files": file_of("manifest.json")},
        {"files": file_of(size=-1)},
        {"files": file_of(size=0)},
        {"files": file_of(size=1.5)},
        {"files": file_of(sha256="0" * 63)},
        {"files": file_of(sha256=None)},
        {"files": {"rank-00000.pt": 1, "rank-00001.pt": 2}},
        {"marks": {"phase_border": 1}},
        {"marks": {"validation_loss": "low"}},
        {"marks": {"other": 1}},
        {"marks": 1},
    ],
    ids=str,
)
def test_what_is_no_checkpoints_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"its|it is"):
        parse_manifest(json.dumps({**GOOD, **changed}), FOLDER)


@pytest.mark.parametrize("missing", ["step", "world", "files", "meta"])
def test_what_lacks_an_entry_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match=f"KeyError: '{missing}'"):
        parse_manifest(json.dumps({k: v for k, v in GOOD.items() if k != missing}), FOLDER)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"step"'])
def test_other_json_and_none_at_all_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_manifest(text, FOLDER)


def test_what_cannot_be_read_is_not_listed(tmp_path: Path) -> None:
    texts = {5: json.dumps(GOOD), 10: "{", 15: json.dumps(GOOD), 20: None}
    for step, text in texts.items():
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        if text is not None:
            (folder / "manifest.json").write_text(text)
    for name in ("step-00000005.tmp", "step-00000005.damaged-1", "step-5", "steps-00000005"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000025").write_text("")
    assert [checkpoint.step for checkpoint in readable(tmp_path)] == [5]
