"""Recipes by name: found, composed by Hydra, typed and checked part by part."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.config import Config, typed
from finetune.errors import UserError
from finetune.overrides import ill_typed
from finetune.phases import PhaseConfig

COMPOSING = re.compile(r"In '.*raised while composing config:$")
NO_OPTION = re.compile(r"Could not find '(.*?)/(.*?)'\s+Available options in '.*?':\s+(.*?)\s+Config search path", re.S)
USAGE = "give a recipe: conf=NAME"


def split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe's name and what else Hydra is to read."""
    names = [a.removeprefix("conf=") for a in arguments if a.startswith("conf=")]
    if len(names) != 1 or not names[0]:
        raise UserError(f"{USAGE}, where NAME is one of {', '.join(sorted(recipes()))}")
    return names[0].removesuffix(".yaml"), [a for a in arguments if not a.startswith("conf=")]


def read_recipe(arguments: Sequence[str]) -> Config:
    """The recipe that `conf=NAME key=value …` ask for. Raises UserError where there is none or a setting is wrong."""
    name, overrides = split_arguments(arguments)
    return compose_recipe(name, recipe_folder(name), overrides)


def packaged_folder() -> Path:
    """The recipes that come with Longhaul: inside the package once installed, beside it in a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def recipes() -> dict[str, Path]:
    """Every recipe's name and folder; those under the user's own ./conf come before ours of the same name."""
    folders = (packaged_folder(), Path.cwd() / "conf")
    return {path.stem: path.parent for folder in folders for path in sorted(folder.glob("*.yaml"))}


def recipe_folder(name: str) -> Path:
    """Where the recipe lies. Raises UserError with the recipes there are."""
    known = recipes()
    if name not in known:
        raise UserError(f"there is no recipe {name!r} (conf={name}): use one of {', '.join(sorted(known))}")
    return known[name]


def compose_recipe(name: str, folder: Path, overrides: Sequence[str]) -> Config:
    """The recipe with the overrides, typed and checked part by part.

    Raises:
        UserError: a key that does not exist, a value of the wrong type, or one that is not allowed.
    """
    if not re.search(r"^defaults:", (folder / f"{name}.yaml").read_text(encoding="utf-8"), re.MULTILINE):
        raise UserError(f"the recipe {folder / name}.yaml has no defaults: begin it with `defaults: [schema, _self_]`")
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed = compose(name, [*overrides, f"hydra.searchpath=[file://{packaged_folder()}]"])
        if added := next(unknown_settings(composed), None):
            raise UserError(f"there is no setting {added}{suggestion(added)}")
        return typed(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    except yaml.YAMLError as error:
        raise UserError(f"a recipe is no YAML: {' '.join(str(error).split())}") from error


def explain(error: Exception) -> str:
    """One sentence of Hydra's and OmegaConf's messages: the key, what was given, what is allowed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    said = str(cause or error)
    if re.search(r"no viable alternative at input '\{.*['\"]", said):
        return "names within {} stand without quotes on the command line: write {name: value}"
    if unread := re.match(r"LexerNoViableAltException: (.*)|no viable alternative at input '(.*?)'", said):
        text = unread[1] or unread[2]
        return f"{text} cannot be read: close all brackets, and put texts in quotes of their own, as in 'KEY=[\"a?b\"]'"
    if group := NO_OPTION.search(said):
        return f"there is no {group[1]}={group[2]}: use one of {', '.join(group[3].split())}"
    # Composing several files, Hydra keeps of what went wrong the text alone, behind a line of its own.
    sentence = next((line for line in said.splitlines() if not COMPOSING.match(line)), said)
    told = re.search(r"full_key: (\S+)", said)
    key = str(cause.full_key) if isinstance(cause, OmegaConfBaseException) and cause.full_key else told and told[1]
    if not key and (given := re.search(r"merge DictConfig with ListConfig|not a subclass of \w+\. value: (.*)", said)):
        what = given[1] or "a list"
        return f"{what} stands where settings belong by their names: write {{name: value}}"
    if not key:
        return sentence if COMPOSING.match(said.splitlines()[0]) else " ".join(said.split())
    if missing := re.search(r"Environment variable '(.*?)' not found", said):
        return f"{key} asks for the environment variable {missing[1]}, which is not set: export it"
    if wrong := ill_typed(key, said):
        return wrong
    if "not in 'PhaseConfig'" in said:
        allowed = ", ".join(field.name for field in fields(PhaseConfig))
        return f"there is no setting {key.rpartition('.')[2]} of a phase: use one of {allowed}"
    if "not in" in said:
        return f"there is no setting {key}{suggestion(key)}"
    if "is not a subclass of SourceConfig" in said:
        return f"data.sources.{key} cannot be set alone: give data.sources={{NAME: {{path: …}}, …}}, all of them"
    if re.search(r"is not a subclass of \w+|Cannot assign \w+ to Dict", said):
        return f"{key} holds settings by their names: write {{name: value}}, or give one alone, as {key}.NAME=…"
    if "is incompatible with (str)" in said:
        return f"{key} has a name that is no text: put it in quotes"
    if "is not a ListConfig" in said:
        where = "an entry of a list has to be a list itself" if key.isdecimal() else f"{key} has to be a list"
        return f"{where}: write [a, b]"
    if "merge DictConfig with ListConfig" in said:
        return f"{key} is a list, but it takes names and values: write {{name: value}}"
    if "is not Optional" in said:
        return f"{key} is empty: remove it, or give it a value"
    return f"{key}: {sentence}"


def suggestion(key: str) -> str:
    """The settings nearest to a mistyped one, or where all of them are listed."""
    near = difflib.get_close_matches(key, settings(OmegaConf.structured(Config)), n=3, cutoff=0.75)
    return f": did you mean {' or '.join(near)}?" if near else ": `--cfg job` shows all that there are"


def schema() -> DictConfig:
    """The recipe's schema, open where names are the user's own: sources, categories, …"""
    root: DictConfig = OmegaConf.structured(Config)
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if OmegaConf.get_type(node) is dict:
            OmegaConf.set_struct(node, False)
        else:
            inner = (node[key] for key in node if not OmegaConf.is_missing(node, key))
            waiting += [each for each in inner if isinstance(each, DictConfig)]
    return root


ConfigStore.instance().store(name="schema", node=schema())


def unknown_settings(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys that no dataclass of the schema has: Hydra lets `+key=value` add any."""
    kind = OmegaConf.get_type(config)
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else None
    for key in config:
        if known is not None and key not in known:
            yield f"{prefix}{key!s}"
        elif not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            yield from unknown_settings(config[key], f"{prefix}{key!s}.")


def settings(config: DictConfig, prefix: str = "") -> list[str]:
    """Every key of the schema with its dots."""
    names = []
    for key in config:
        name = f"{prefix}{key!s}"
        names.append(name)
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            names += settings(config[key], f"{name}.")
    return names
