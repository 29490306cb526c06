"""What a recipe may not say about its data."""

from math import inf, nan

import pytest

from finetune.data.config import DataConfig, SourceConfig
from finetune.errors import UserError


@pytest.mark.parametrize(
    ("weight", "message"), [(-0.5, "use 0 or more"), (nan, "use a finite number"), (inf, "use a finite number")]
)
def test_a_source_s_weight_is_finite_and_not_negative(weight: float, message: str) -> None:
    with pytest.raises(UserError, match=f"a source's loss_weight is {weight}: {message}"):
        SourceConfig("somewhere", loss_weight=weight)


def test_latents_are_of_pictures_that_are_cut_alike_at_every_draw() -> None:
    DataConfig(latents="here", flip=0.5)
    with pytest.raises(UserError, match=r"data\.latents is given, and data\.random_crop=true"):
        DataConfig(latents="here", random_crop=True)
