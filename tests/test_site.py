"""The docs site builds without a warning, shows every page, and fetches nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import browser
from tests.test_readme import ROOT

pytest.importorskip("zensical", reason="zensical is not installed (extra docs)")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed (extra docs)")

COPIED = ("mkdocs.yml", "docs/build.py")
LINKED = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "LICENSE")
LINKED += ("hpe", "examples", "configs", "launch", "docker")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it, in a copy of what it is made from."""
    home = tmp_path_factory.mktemp("site")
    for name in COPIED:  # whoever builds looks beside these for all others
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    for name in (*LINKED, *(f"docs/{path.name}" for path in (ROOT / "docs").iterdir())):
        if name not in COPIED:
            (home / name).symlink_to(ROOT / name)
    done = subprocess.run([sys.executable, str(home / "docs/build.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
    return home / "build" / "site"


def in_nav(part: Any) -> list[str]:
    """The pages of a part of `nav`."""
    if isinstance(part, str):
        return [part]
    return [page for inner in (part.values() if isinstance(part, dict) else part) for page in in_nav(inner)]


def test_every_page_is_in_the_navigation_once(site: Path) -> None:
    listed = in_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    staged = {path.name for path in (site.parent / "docs").glob("*.md")}
    assert sorted(listed) == sorted(staged), "list new pages under nav in mkdocs.yml"


def test_the_options_of_commands_and_the_python_api_are_on_the_site(site: Path) -> None:
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert all(f'id="hpe-{name}"' in commands for name in ("pack", "train", "landmarks-draw"))
    assert "--change-precision" in commands
    api = (site / "api.html").read_text(encoding="utf-8")
    assert all(f'id="hpe{name}"' in api or f">hpe.{name}" in api for name in ("load", "Stream", "tables"))
    assert "samples_seen" in api
    files = (site / "files.html").read_text(encoding="utf-8")
    assert "von_mises_loss" in files


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.glob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|icon|preconnect)[^>]+href=\"?([^\" >]+)", text)
        assert [url for url in loaded if re.match(r"(?:https?:)?//", url)] == [], page.name


@pytest.mark.skipif(browser.found() is None, reason="no Chromium here")
def test_pages_open_from_the_disk_without_complaint_and_fit_a_phone(site: Path, tmp_path: Path) -> None:
    with browser.browser(tmp_path) as page:
        for name in ("index.html", "trouble.html", "results.html", "api.html"):
            page.open(site / name, width=390, height=800)
            assert page.run("document.documentElement.scrollWidth") <= 390, name
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
