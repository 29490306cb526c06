"""One part of a model, from a folder or the hub."""

import re
from pathlib import Path
from typing import Any, TypeVar

from finetune.errors import UserError
from finetune.model.config import ModelConfig

T = TypeVar("T")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_part(part: type[T], config: ModelConfig, subfolder: str, **options: Any) -> T:
    """A part by its class and its folder in diffusers' layout. Raises UserError where it cannot be loaded."""
    path = Path(config.path).expanduser()
    if not path.exists() and not HUB_ID.fullmatch(config.path):
        raise UserError(f"model.path {config.path} is neither a folder nor a hub id (OWNER/NAME): correct it")
    try:
        loaded: T = part.from_pretrained(  # type: ignore[attr-defined]
            str(path) if path.exists() else config.path, subfolder=subfolder, **options
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.path {config.path} has no {subfolder} that can be loaded ({reason}): "
            "give a folder or hub id in diffusers' layout with safetensors weights"
        ) from error
    return loaded
