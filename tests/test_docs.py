"""What is written about the project is true of it."""

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from finetune.config import phases
from finetune.recipes import compose_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ABOVE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = [*ABOVE, *sorted(DOCS.glob("*.md"))]
CODE = re.compile(r"`([^`\n]+)`")
KOHYA_FLAGS = Path(__file__).with_name("kohya_flags.txt").read_text(encoding="utf-8").split()
"""Of fine_tune.py at the commits that docs/kohya.md names."""
TELLING = 15
"""So many characters of a sentence have to be the code's own for it to be known by them."""


def of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fenced(page: str, language: str) -> list[str]:
    """The blocks of code of a language on a page of docs/."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", of(DOCS / page), re.DOTALL | re.MULTILINE)
    assert found
    return found


@pytest.mark.parametrize("script", sorted(DOCS.glob("make_*.py")), ids=lambda script: script.stem)
def test_what_scripts_make_of_the_code_is_fresh(script: Path) -> None:
    command = [sys.executable, str(script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", of(page)):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_and_tables_follow_an_empty_line_as_the_site_needs_it(page: Path) -> None:
    before = ""
    for line in re.sub(r"^```.*?^```", "", of(page), flags=re.DOTALL | re.MULTILINE).splitlines():
        begins = re.match(r"- |\d+\. |\|", line) and not re.match(r"- |\d+\. |  |\|", before)
        assert not (begins and before.strip()), line
        before = line


class Fetched(HTMLParser):
    """Collects what a browser fetches of its own accord for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag != "a" and given.get("rel") != "canonical":
            self.found += [value for name in ("src", "href", "srcset", "data") if (value := given.get(name))]


def build(project: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a project in a folder, so that whatever is not right ends it (--quiet would not)."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_link_that_leads_nowhere_ends_the_build_of_the_site(tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    broken = ("gone.md", "data.md#gone", "../launch/gone.yaml", "gone.png")
    (tmp_path / "docs/models.md").write_text("".join(f"![x]({link})\n" for link in broken), encoding="utf-8")
    (tmp_path / "docs/omitted.md").touch()
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert not [link for link in (*broken, "omitted.md") if link not in done.stderr], done.stderr


@pytest.mark.parametrize(
    ("link", "there"),
    [
        ("[phases](phases.md#validation)", "[phases](phases.md#validation)"),
        ("[the batch file](../launch/slurm.sbatch)", "the batch file (`launch/slurm.sbatch`)"),
        ("[launch/slurm.sbatch](../launch/slurm.sbatch)", "`launch/slurm.sbatch`"),
        ("[slurm.sbatch](../launch/slurm.sbatch)", "`launch/slurm.sbatch`"),
        ("[changes](../CHANGELOG.md)", "[changes](changes.md)"),
        ("![weights](weights.png)", "![weights](weights.png)"),
        ("[gone](../launch/gone.yaml)", "[gone](../launch/gone.yaml)"),
        ("[arXiv](https://arxiv.org/abs/2305.08891)", "[arXiv](https://arxiv.org/abs/2305.08891)"),
    ],
)
def test_links_of_pages_as_the_site_has_them(link: str, there: str) -> None:
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    assert hooks["LINK"].sub(lambda found: hooks["site_link"](found, DOCS), link) == there


def test_the_site_has_every_page_and_its_search(site: Path) -> None:
    ours = {f"{page.stem}.html" for page in DOCS.glob("*.md")} | {"changes.html", "contributing.html"}
    assert ours <= {page.name for page in site.glob("*.html")}
    assert not [path for path in site.rglob("*") if path.suffix in (".md", ".py")]
    found = json.loads(of(site / "search/search_index.json"))["docs"]
    assert ours <= {entry["location"].partition("#")[0] or "index.html" for entry in found}


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        reader = Fetched()
        reader.feed(of(page))
        assert reader.found
        assert not [link for link in reader.found if re.match(r"(https?:)?//", link)], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", of(sheet)), sheet.name


def test_no_link_of_the_site_leaves_it_for_a_file_of_the_repository(site: Path) -> None:
    pages = (page for page in site.glob("*.html") if page.name != "404.html")  # which is shown for any address
    links = {link for page in pages for link in re.findall(r'href="([^"#:]+)["#]', of(page))}
    assert not [link for link in links if link.startswith("..") or not (site / link).exists()]


def settings() -> dict[str, str]:
    """Every setting of the schema with its default, as configuration.md has them."""
    return dict(re.findall(r"^\| `([\w.\[\]]+)` \| (.+?) \|", of(DOCS / "configuration.md"), re.MULTILINE))


def known(name: str, defaults: dict[str, str]) -> bool:
    """Whether there is such a setting, a group of settings of this name, or one whose names are the user's own."""
    above = [name[:at] for at in (dot.start() for dot in re.finditer(r"\.", name))]
    inside = any(defaults.get(group) == "`{}`" for group in above)
    return name in defaults or inside or any(key.startswith(f"{name}.") for key in defaults)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_pages_name_exist(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "performance.md"):  # one tells of former settings, one of figures
        pytest.skip("names what is no setting")
    defaults = settings()
    roots = {key.partition(".")[0] for key in defaults if "." in key}
    for code in CODE.findall(of(page)):
        named = re.match(r"([a-z_]+(?:\.(?:NAME|[a-z0-9_]+))+)(?=$|[=: *]|\.\*)", code)
        if named and named[1].partition(".")[0] in roots and not named[1].endswith((".py", ".md", ".jsonl", ".json")):
            assert known(re.sub(r"data\.sources\.(?!NAME)\w+", "data.sources.NAME", named[1]), defaults), code


@pytest.mark.parametrize("package", ["finetune.runs", "data_tools"])
def test_commands_that_pages_give_exist(package: str) -> None:
    told = subprocess.run([sys.executable, "-m", package, "--help"], capture_output=True, text=True, check=True).stdout
    there = set(re.findall(r"^\W*(\w+) ", told, re.MULTILINE))
    given = {name for page in PAGES for name in re.findall(rf"python -m {re.escape(package)} ([a-z]+)", of(page))}
    assert given
    assert not given - there


def said() -> Iterator[re.Pattern[str]]:
    """Every sentence of the code, whatever is put into it."""
    for package in ("finetune", "data_tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(of(path))):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
                if sum(len(text) for text in texts if isinstance(text, str)) >= TELLING:
                    yield re.compile("".join(re.escape(text) if isinstance(text, str) else ".+" for text in texts))


def test_what_pages_quote_is_said_by_the_code() -> None:
    sentences = list(said())
    for quoted in re.findall("^> (.+)", "".join(of(page) for page in PAGES), re.MULTILINE):
        assert any(sentence.fullmatch(quoted) for sentence in sentences), quoted


def test_every_flag_of_kohya_has_its_row() -> None:
    rows = [line.split("|")[1] for line in of(DOCS / "kohya.md").splitlines() if line.startswith("| `")]
    listed = {flag for row in rows for flag in CODE.findall(row)}
    assert not set(KOHYA_FLAGS) - listed


def test_the_run_that_comes_from_kohya_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "fox.yaml").write_text(fenced("kohya.md", "yaml")[0], encoding="utf-8")
    config = compose_recipe("fox", tmp_path, [])
    (phase,) = phases(config)
    assert (phase.micro_batch, config.train.global_batch, phase.optim.lr) == (8, 64, 5e-6)
    assert config.data.sources["main"].overlay.path == "/data/meta.jsonl"


def test_metadata_of_kohya_becomes_an_overlay(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    for name in ("one.jpg", "deep/two.png", "deep/three.webp"):
        (pictures / name).touch()
    named = {"one": {"tags": "fox, snow"}, str(pictures / "deep/two"): {"caption": "zwei"}}
    meta = {**named, str(pictures / "deep/three.webp"): {"tags": "a", "caption": "b", "train_resolution": [512, 512]}}
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    (script,) = fenced("kohya.md", "python")
    subprocess.run([sys.executable, "-c", script.replace("/data/", f"{tmp_path}/")], check=True)
    rows = [json.loads(line) for line in of(tmp_path / "meta.jsonl").splitlines()]
    assert rows == [
        {"key": "one.jpg", "tags": "fox, snow", "caption": None},
        {"key": "deep/two.png", "tags": None, "caption": "zwei"},
        {"key": "deep/three.webp", "tags": "a", "caption": "b"},
    ]


@pytest.mark.parametrize("page", ["recipe.md", "quickstart.md"])
def test_whole_recipes_on_pages_compose(page: str, tmp_path: Path) -> None:
    (text,) = (text for text in fenced(page, "yaml") if text.startswith("# conf/fox.yaml"))
    (tmp_path / "fox.yaml").write_text(text, encoding="utf-8")
    assert compose_recipe("fox", tmp_path, ["data.shards=/nowhere"]).run.name == "fox"


def test_the_recipe_is_explained_as_it_is() -> None:
    recipe = yaml.safe_load(of(ROOT / "conf/hyperfusion.yaml"))
    explained = [yaml.safe_load(text) for text in fenced("recipe.md", "yaml") if not text.startswith("# conf/")]
    assert {key for part in explained for key in part} == recipe.keys()
    for part in explained:
        assert covered(part, recipe)


def covered(part: Any, whole: Any) -> bool:
    """Whether all that is said in `part` is so in `whole`; lists may be shorter."""
    if isinstance(part, dict):
        return all(key in whole and covered(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return all(covered(value, of_whole) for value, of_whole in zip(part, whole, strict=False))
    return bool(part == whole)
