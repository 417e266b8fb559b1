"""mkdocs hooks: pages from outside ``docs/`` join the site, and links between files of the repository lead to their pages.

README.md becomes the home page. CONTRIBUTING.md, CHANGELOG.md, LICENSE and the reports in ``benchmarks/results`` are added too.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
RESULTS = "benchmarks/results"
REPORTS = sorted(path.name for path in (ROOT / RESULTS).iterdir() if path.suffix in {".md", ".png"})
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "LICENSE": "LICENSE"}
OUTSIDE = PAGES | {f"{RESULTS}/{name}": f"results/{name}" for name in REPORTS}  # place in the repository: place in the site
LINK = re.compile(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files from outside ``docs/``, and a list of the reports."""
    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    listed = "\n".join(f"- [{name.removesuffix('.md')}]({name})" for name in reversed(REPORTS) if name.endswith(".md"))
    text = f"# Benchmark reports\n\nEach report names its machine, versions and command. [Benchmarks](../benchmarks.md) has the method.\n\n{listed}\n"
    files.append(File.generated(config, "results/index.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    place = page.file.src_uri
    source = next((name for name, other in OUTSIDE.items() if other == place), f"docs/{place}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        new = "results/index.md" if target == RESULTS else OUTSIDE.get(target, target.removeprefix("docs/"))
        return f"]({posixpath.relpath(new, posixpath.dirname(place) or '.')}{match[2] or ''})"

    return markdown if place == "results/index.md" else LINK.sub(moved, markdown)
