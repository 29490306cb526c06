"""Writes configuration.md from the schema: `python docs/make_configuration.py`; with --check it only compares."""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from finetune.config import Config

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """# Configuration

`conf=NAME` takes `conf/NAME.yaml` from the folder you stand in, or else a recipe that comes with Longhaul. All else is
Hydra: `group=choice` (below `conf/`: model, data, captions, diffusion, optim, strategy, monitor) and `key=value`
override, `--cfg job` shows the result. A recipe begins with `defaults: [schema, …]`, and a key that is not listed here
is an error.

This page is made from the schema by `python docs/make_configuration.py`.
"""


def field_notes(owner: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    notes = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            assert isinstance(after.value, ast.Constant)
            notes[field.target.id] = " ".join(str(after.value.value).split()).replace("|", r"\|")
    return notes


def default(field: dataclasses.Field[Any]) -> Any:
    """The field's default."""
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]


def shown(value: Any) -> str:
    """A default as YAML would have it."""
    if value == "???":
        return "*must be set*"
    plain = {None: "null", True: "true", False: "false", "": '""'}
    return f"`{plain[value] if isinstance(value, str | bool | None) and value in plain else value}`"


def section(owner: type, prefix: str, whole: Any = None) -> str:
    """A heading and a table of one dataclass, followed by those of the dataclasses in it. Defaults are those of
    `whole`, which a field of the dataclass around it may have made otherwise, or else the dataclass's own."""
    notes, hints = field_notes(owner), get_type_hints(owner)
    rows, nested = [], []
    for field in dataclasses.fields(owner):
        kind = hints[field.name]
        value = default(field) if whole is None else getattr(whole, field.name)
        inner = next((a for a in (kind, *get_args(kind)) if dataclasses.is_dataclass(a)), None)
        if inner is not None:
            many = "" if inner is kind else ".NAME" if get_origin(kind) is dict else "[]"
            nested.append(section(inner, f"{prefix}{field.name}{many}.", value if inner is kind else None))
        if inner is not kind:
            rows.append(f"| `{prefix}{field.name}` | {shown(value)} | {notes[field.name]} |")
    doc = " ".join((owner.__doc__ or "").split())
    table = "\n".join(["| key | default | |", "|---|---|---|", *rows])
    title = f"## {prefix.rstrip('.') or 'The whole'}"
    return "\n\n".join([f"{title}\n\n{doc}\n\n{table}", *nested])


def contents(page: str) -> str:
    """Links to the parts of a recipe, which are the headings without a dot."""
    titles = re.findall(r"^## ([a-z]+)(?:\[\])?$", page, re.MULTILINE)
    return " · ".join(f"[{title}](#{title})" for title in titles)


def main() -> None:
    """Write the page, or say that it is out of date."""
    settings = section(Config, "")
    page = f"{HEAD}\n{contents(settings)}\n\n{settings}\n"
    if "--check" in sys.argv:
        sys.exit(
            PAGE.read_text(encoding="utf-8") != page and f"{PAGE} is out of date: run python {Path(__file__).name}"
        )
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
