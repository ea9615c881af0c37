"""Build the docs site: ``python docs/build.py`` stages the pages in ``build/docs`` and writes ``build/site``.

Staging adds what is generated (the options of every command, the Python API, the files of ``configs/`` and the like),
makes README.md the first page, and lets links to files of the repository lead to the page that shows them. The site is
built by Zensical, the successor of Material for MkDocs, from ``mkdocs.yml``; any warning, such as a broken link, is an
error.
"""

import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
STAGED: Final = ROOT / "build" / "docs"
PAGES: Final = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages from outside ``docs/``, and where they are on the site."""
SHOWN: Final = ("examples", "configs", "launch", "docker")
FILES: Final = "files.md"
"""The page that shows the files of these folders."""
_LONGEST_WHOLE: Final = 30
_LANGUAGE: Final = {".py": "python", ".yaml": "yaml", ".sh": "sh", ".def": "sh", ".cff": "yaml", ".ipynb": "python"}


def stage() -> list[Path]:
    """Write every page to ``build/docs``."""
    shutil.rmtree(STAGED, ignore_errors=True)
    shutil.copytree(ROOT / "docs", STAGED, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for source, name in PAGES.items():
        shutil.copy(ROOT / source, STAGED / name)
    homes = {STAGED / name: Path(source) for source, name in PAGES.items()}
    for page in sorted(STAGED.glob("*.md")):
        home = homes.get(page, Path("docs") / page.name)
        page.write_text(_linked(page.read_text(encoding="utf-8"), home), encoding="utf-8")
    _append("commands.md", "\n".join(commands()))
    for page in STAGED.glob("*.md"):
        page.write_text(_with_whole_options(page.read_text(encoding="utf-8")), encoding="utf-8")
    _append("api.md", "\n".join(api()))
    (STAGED / FILES).write_text("\n".join(files()), encoding="utf-8")
    return sorted(STAGED.glob("*.md"))


def _append(page: str, text: str) -> None:
    with (STAGED / page).open("a", encoding="utf-8") as opened:
        opened.write(f"\n{text}\n")


def _linked(text: str, home: Path) -> str:
    """A page of the repository at ``home`` whose links lead to pages of the site."""

    def target(match: re.Match[str]) -> str:
        link, heading = match[2], match[3] or ""
        if re.match(r"[a-z]+:", link):
            return match[0]
        place = posixpath.normpath(posixpath.join(home.parent.as_posix(), link))
        return f"{match[1]}{_on_site(place)}{heading})"

    return re.sub(r"(\]\()([^)#\s]+)(#[^)]*)?\)", target, text)


def _with_whole_options(text: str) -> str:
    """A page in whose prose no line breaks inside a short option; ``|`` in code of tables stands as it is."""

    def span(match: re.Match[str]) -> str:
        code = match[1].replace("\\|", "|")
        short = len(code) <= _LONGEST_WHOLE and re.search(r"(^|\s)--?\w", code)
        return f"`{code}`" + "{.whole}" * bool(short)

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else re.sub(r"`([^`\n]+)`", span, part) for part in parts)


def _on_site(place: str) -> str:
    """Where the site has a file of the repository."""
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    if place in PAGES:
        return PAGES[place]
    return f"{FILES}#{_anchor(place)}"


def _anchor(place: str) -> str:
    return re.sub(r"\W+", "-", place)


def commands() -> Iterator[str]:
    """Markdown of every command: its help, and its arguments and options."""
    import typer.main
    from typer.core import TyperGroup

    from hpe.cli import app

    def of(name: str, command: object) -> Iterator[str]:
        if isinstance(command, TyperGroup):
            for sub, inner in command.commands.items():
                yield from of(f"{name} {sub}", inner)
            return
        context = command.make_context(name, [], resilient_parsing=True)  # type: ignore[attr-defined]
        yield f"\n## {name}\n\n{command.help}\n"  # type: ignore[attr-defined]
        yield "| argument or option | |\n|---|---|"
        for parameter in command.params:  # type: ignore[attr-defined]
            if (record := parameter.get_help_record(context)) is not None:
                words, told = record[0], record[1].replace("|", "\\|")
                yield f"| `{words}` | {told.replace('  [', ' [')} |"

    yield from of("hpe", typer.main.get_command(app))


def api() -> Iterator[str]:
    """Directives of mkdocstrings for every name that ``import hpe`` offers."""
    import hpe

    for name in hpe.__all__:
        yield f"\n## hpe.{name}\n\n::: {hpe._PUBLIC[name]}.{name}\n    options: {{show_root_heading: false}}"


def files() -> Iterator[str]:
    """The page of files."""
    yield "# Configs and scripts\n\nEvery file of `" + "`, `".join(SHOWN) + "`, as it lies in the repository.\n"
    for folder in SHOWN:
        yield f"## {folder} {{#{_anchor(folder)}}}\n"
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and (path.suffix in _LANGUAGE or path.name == "Dockerfile"):
                yield from _file(path)
    yield "## Others\n"
    for name in ("CITATION.cff", "SECURITY.md", "LICENSE"):
        yield from _file(ROOT / name)


def _file(path: Path) -> Iterator[str]:
    place = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join(_cell(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"])
    language = _LANGUAGE.get(path.suffix, "text")
    yield f"### {place} {{#{_anchor(place)}}}\n\n````{language}\n{text.rstrip()}\n````\n"


def _cell(kind: str, text: str) -> str:
    """A cell of a notebook as Python; its prose as comments."""
    return text if kind == "code" else "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def build() -> int:
    """Build the staged pages; the exit code."""
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict", "--clean"]
    environment = os.environ | {"NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    told = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    # Zensical's own traceback behind its warnings says nothing more.
    print(told.partition("Traceback (most recent call last)")[0].strip())
    return done.returncode


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(f"{len(stage())} pages in {STAGED.relative_to(ROOT)}")
    sys.exit(build())
