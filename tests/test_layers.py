"""Imports go down only, and what tools need stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*ROOT.glob("finetune/**/*.py"), *ROOT.glob("data_tools/**/*.py")])
# The longest prefix that fits decides. What owns a dataclass of the recipe has to be light as well.
LAYERS = {
    "finetune": 0,
    "finetune.errors": 0,
    "finetune.checks": 0,
    "finetune.entry": 0,
    "finetune.redact": 0,
    "finetune.parent": 0,
    "finetune.beside": 0,
    "finetune.ranks": 0,
    "finetune.flat": 0,
    "finetune.overrides": 0,
    "finetune.strategy": 0,
    "finetune.data.config": 0,
    "finetune.data.prompts.config": 0,
    "finetune.model.config": 0,
    "finetune.optim.config": 0,
    "finetune.diffusion.config": 0,
    "finetune.checkpoint.config": 0,
    "finetune.checkpoint.export_config": 0,
    "finetune.checkpoint.names": 0,
    "finetune.monitor.config": 0,
    "finetune.monitor.alerts.config": 0,
    "finetune.monitor.samples.config": 0,
    "finetune.health.config": 0,
    "finetune.distributed": 1,
    "finetune.diffusion": 1,
    "finetune.data": 1,
    "finetune.data.images": 2,
    "finetune.data.remote": 2,
    "finetune.data.cache": 2,
    "finetune.data.sources": 2,
    "finetune.data.latents": 2,
    "finetune.data.latent_sets": 2,
    "finetune.data.prepare": 2,
    "finetune.data.preparer": 2,
    "finetune.data.ahead": 2,
    "finetune.data.batch": 2,
    "finetune.data.loader": 2,
    "finetune.model": 2,
    "finetune.optim": 2,
    "finetune.checkpoint": 2,
    "finetune.stopwatch": 1,
    "finetune.step": 3,
    "finetune.feed": 3,
    "finetune.validation": 3,
    "finetune.phases": 4,
    "finetune.monitor": 4,
    "finetune.lifecycle": 4,
    "finetune.control": 4,
    "finetune.health": 4,
    "finetune.engine": 5,
    "finetune.memory": 5,
    "finetune.config": 5,
    "finetune.live": 5,
    "finetune.parts": 6,
    "finetune.looks": 6,
    "finetune.warmup": 6,
    "finetune.opening": 6,
    "finetune.saving": 6,
    "finetune.recovery": 6,
    "finetune.steering": 6,
    "finetune.train": 6,
    "finetune.recipe_data": 6,
    "finetune.recipes": 6,
    "finetune.runs": 6,
    "finetune.launch": 6,
    "finetune.__main__": 6,
}
NUMPY_ONLY = (
    "hashing",
    "samples",
    "index",
    "labels",
    "layout",
    "plan",
    "journal",
    "overlay",
    "geometry",
    "held_out",
    "buckets",
    "prompts.prompter",
)
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "deepspeed", "bitsandbytes", "matplotlib", "wandb")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    while module not in LAYERS:
        module = module.rpartition(".")[0]
    return LAYERS[module]


def imports(path: Path) -> list[str]:
    """The project's own modules that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [node.module or ""]
            found += [f"{node.module}.{alias.name}" for alias in node.names if is_module(f"{node.module}.{alias.name}")]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] in {"finetune", "data_tools"}]


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down_only(path: Path) -> None:
    module = module_name(path)
    for name in imports(path):
        if module.startswith("data_tools"):
            assert name not in {"finetune.train", "finetune.runs", "finetune.__main__"}
        else:
            assert not name.startswith("data_tools"), f"{module} imports {name}"
            assert layer(name) <= layer(module), f"{module} imports {name}"


def imported_by(*modules: str) -> set[str]:
    program = f"import sys, {', '.join(modules)}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_recipe_s_schema_imports_nothing_heavy() -> None:
    assert not imported_by("finetune.config", "finetune.recipes") & {*HEAVY, "PIL", "pyarrow"}


@pytest.mark.parametrize("command", ["status", "list", "serve"])
def test_looking_at_a_run_imports_nothing_heavy(command: str) -> None:
    heavy = {*HEAVY, "PIL", "pyarrow"}
    assert not imported_by("finetune.runs.__main__", f"finetune.runs.{command}") & heavy


def test_the_plan_needs_no_torch() -> None:
    assert not imported_by(*(f"finetune.data.{name}" for name in NUMPY_ONLY)) & {*HEAVY, "PIL"}


def test_the_objective_needs_torch_alone() -> None:
    heavy = imported_by("finetune.diffusion.objective") & set(HEAVY)
    assert heavy == {"torch"}


def test_accelerate_and_deepspeed_have_one_home() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.split(".")[0] for name in names} & {"accelerate", "deepspeed"}:
                assert module_name(path).startswith("finetune.distributed")
