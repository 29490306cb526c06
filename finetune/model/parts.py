"""One part of a model, from a folder or the hub."""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from transformers.utils import cached_file

from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.single_file import published_config

T = TypeVar("T")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
INDEX = "model_index.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)
"""What diffusers and transformers raise for files that are missing, broken or senseless."""


def load_part(part: type[T], config: ModelConfig, name: str) -> T:
    """A part without weights by its class and its name in diffusers' layout. Raises UserError where it cannot be
    loaded."""
    setting, source = _layout(config)
    try:
        loaded: T = part.from_pretrained(source, subfolder=name)  # type: ignore[attr-defined]
    except UNREADABLE as error:
        raise _missing(setting, source, name, error) from error
    return loaded


def load_module(part: type[T], config: ModelConfig, name: str, **options: Any) -> T:
    """A part with its weights, which are read from safetensors: of half precision where there are no others.

    Tensors too many are left alone: published text encoders have `position_ids`, say.

    Raises:
        UserError: it cannot be loaded, or it lacks tensors or has some of another shape, which diffusers would leave
            empty and transformers would fill at random.
    """
    setting, source = _layout(config)
    try:
        loaded, report = _read(part, source, name, options)
    except UNREADABLE as error:
        raise _missing(setting, source, name, error) from error
    misshapen = [f"{each} with {tuple(has)} for {tuple(needs)}" for each, has, needs in report["mismatched_keys"]]
    for complaint, tensors in (("missing", report["missing_keys"]), ("of another shape", misshapen)):
        if tensors:
            raise UserError(
                f"{setting} {source}: its {name} does not fit its config.json (tensors {complaint}: {len(tensors)}, "
                f"the first {min(tensors)}): give the whole part with the config.json that belongs to it"
            )
    return loaded


def _read(part: type[T], source: str, name: str, options: Mapping[str, Any]) -> tuple[T, Mapping[str, Any]]:
    """A part and what of it was not found, from weights named plainly, else from diffusers' variant fp16."""
    read: Callable[..., tuple[T, Mapping[str, Any]]] = partial(
        part.from_pretrained,  # type: ignore[attr-defined]
        source,
        subfolder=name,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    try:
        return read()
    except OSError:
        # Weights that are there but broken are not passed over in silence.
        if any(".fp16" not in path.name for path in Path(source, name).glob("*.safetensors")):
            raise
        with suppress(OSError):
            return read(variant="fp16")
        raise


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
    if path.is_dir():
        return setting, str(path)
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{setting} {source} is pickled, and weights are read from safetensors alone: convert it to one "
            ".safetensors file, or give a folder or hub id in diffusers' layout"
        )
    if path.exists() or not HUB_ID.fullmatch(source):
        raise UserError(f"{setting} {source} is neither a folder nor a hub id (OWNER/NAME): correct it")
    return setting, source


def _missing(setting: str, source: str, what: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"{setting} {source} has no {what} that can be loaded ({reason}): "
        "give a folder or hub id in diffusers' layout with safetensors weights"
    )
