"""Hooks of the site: pages that lie above docs/, and links from pages to files of the repository."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ABOVE = {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
"""Pages above docs/, and what they are on the site."""
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]+)\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie above docs/ and have none of their own in it."""
    for source, name in ABOVE.items():
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as the site needs them, and bars in the code of tables without GitHub's backslash."""
    folder = ROOT if page.file.generated_by else ROOT / "docs"
    markdown = CODE.sub(lambda code: code[0].replace(r"\|", "|"), markdown)
    return LINK.sub(lambda link: site_link(link, folder), markdown)


def site_link(link: re.Match[str], folder: Path) -> str:
    """A link or picture of a page in `folder` as the site has it: what is in docs/, or the name of a file that the site
    hasn't. What is not there stays as it is, and ends a strict build."""
    found = (folder / link["path"]).resolve()
    if not found.exists() or not found.is_relative_to(ROOT):
        return link[0]
    path = found.relative_to(ROOT).as_posix()
    page = ABOVE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if page:
        return f"{link['image']}[{link['text']}]({page}{link['anchor'] or ''})"
    return f"`{path}`" if path.endswith(link["text"]) else f"{link['text']} (`{path}`)"
