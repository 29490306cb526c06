"""What a recipe may say about the model."""

import pytest

from finetune.errors import UserError
from finetune.model.config import ModelConfig


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"config": "y"}, r"model\.config is y but model\.path x has its own configuration"),
        ({"clip_skip": 0}, r"model\.clip_skip is 0: use 1"),
        ({"max_tokens": 100}, r"model\.max_tokens is 100: use a positive multiple of 75"),
        ({"max_tokens": 0}, r"model\.max_tokens is 0"),
        ({"join_chunks": "drop"}, r"model\.join_chunks"),
        ({"pad_chunks": "all"}, r"model\.pad_chunks"),
        ({"attention": "flash"}, r"model\.attention"),
        ({"compile_buckets": 0}, r"model\.compile_buckets is 0: use 1 or more, or model\.compile=false"),
        ({"gradient_checkpointing": "some"}, r"model\.gradient_checkpointing is 'some': use one of none, all, auto"),
        ({"gradient_checkpointing": "True"}, r"gradient_checkpointing is true: write all where it was true"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(path="x", **given)  # type: ignore[arg-type]


def test_clip_skip_is_the_family_s_where_it_is_not_given() -> None:
    assert [ModelConfig(path="x").clip_skip_of(encoders) for encoders in (1, 2)] == [1, 2]
    assert [ModelConfig(path="x", clip_skip=3).clip_skip_of(encoders) for encoders in (1, 2)] == [3, 3]
