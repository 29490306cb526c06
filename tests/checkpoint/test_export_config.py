"""What a recipe says about exports."""

from typing import Any

import pytest

from finetune.checkpoint.export_config import DTYPES, TYPES, ExportConfig, check_cadence, export_name
from finetune.errors import UserError


def test_there_are_none_unless_asked_for() -> None:
    assert ExportConfig().every_steps == 0
    check_cadence(ExportConfig(), 500)


def test_all_formats_and_types_are_taken() -> None:
    for form in DTYPES:
        for dtype in (*TYPES, None):
            ExportConfig(every_steps=1, format=form, dtype=dtype)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"every_steps": -1}, r"export\.every_steps is -1"),
        ({"keep": -1}, r"export\.keep is -1"),
        ({"format": "ckpt"}, r"export\.format is 'ckpt': use one of diffusers, single_file, webui"),
        ({"dtype": "int8"}, r"export\.dtype is 'int8': use one of fp32, fp16, bf16"),
    ],
)
def test_what_is_not_allowed_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        ExportConfig(**settings)


@pytest.mark.parametrize(
    ("every", "saved", "fits"), [(500, 500, True), (1500, 500, True), (750, 500, False), (5, 10, False)]
)
def test_there_has_to_be_a_checkpoint_to_export(every: int, saved: int, fits: bool) -> None:
    if fits:
        check_cadence(ExportConfig(every_steps=every), saved)
    else:
        with pytest.raises(UserError, match=rf"export\.every_steps is {every} and checkpoint\.every_steps {saved}"):
            check_cadence(ExportConfig(every_steps=every), saved)


def test_names_sort_by_step() -> None:
    names = [export_name("run", step, "webui") for step in (5, 50, 500, 12_000)]
    assert names == sorted(names)
    assert export_name("run", 5, "diffusers") == "run-step-00000005"
