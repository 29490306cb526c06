"""One part of a model, from a folder or the hub."""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from transformers.utils import cached_file

from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.single_file import published_config

T = TypeVar("T")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
INDEX = "model_index.json"


def load_part(part: type[T], config: ModelConfig, name: str, **options: Any) -> T:
    """A part by its class and its name in diffusers' layout. Raises UserError where it cannot be loaded."""
    setting, source = _layout(config)
    try:
        loaded: T = part.from_pretrained(source, subfolder=name, **options)  # type: ignore[attr-defined]
    except (OSError, ValueError) as error:
        raise _missing(setting, source, name, error) from error
    return loaded


def has_part(config: ModelConfig, name: str) -> bool:
    """Whether a folder in diffusers' layout holds a part, or the index of one on the hub names it. Raises UserError
    where there is neither."""
    setting, source = _layout(config)
    if Path(source).exists():
        return (Path(source) / name).is_dir()
    try:
        index = json.loads(Path(cached_file(source, INDEX)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _missing(setting, source, INDEX, error) from error
    return index.get(name, [None])[0] is not None


def layout(config: ModelConfig) -> str:
    """Folder or hub id in diffusers' layout from which configurations and tokenizers come. Raises UserError where it
    is neither, or where a single file is of no known family."""
    return _layout(config)[1]


def _layout(config: ModelConfig) -> tuple[str, str]:
    """The setting that is to blame, and the folder or hub id."""
    setting, source = "model.path", config.path
    if config.is_single_file:
        setting = "model.config"
        source = config.config or published_config(Path(config.path).expanduser())
    path = Path(source).expanduser()
    if path.exists():
        return setting, str(path)
    if not HUB_ID.fullmatch(source):
        raise UserError(f"{setting} {source} is neither a folder nor a hub id (OWNER/NAME): correct it")
    return setting, source


def _missing(setting: str, source: str, what: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"{setting} {source} has no {what} that can be loaded ({reason}): "
        "give a folder or hub id in diffusers' layout with safetensors weights"
    )
