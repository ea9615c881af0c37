"""One version: in the package, in CITATION.cff, in CHANGELOG.md and in the tag of a release."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

import hpe
from hpe.data.provenance import about_package

ROOT = Path(__file__).parents[1]


def changelog() -> list[str]:
    """The second-level headings of the changelog, newest first."""
    return re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_citation_has_the_version_and_licence_of_the_package() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()
    assert str(cited["version"]) == hpe.__version__
    assert f'license = "{cited["license"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_changelog_keeps_its_form() -> None:
    first, *released = changelog()
    assert first == "[Unreleased]"
    for heading in released:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading)
    assert not released or released[0].startswith(f"[{hpe.__version__}]")
    kinds = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_a_tagged_commit_has_the_version_of_its_tag() -> None:
    tagged = subprocess.run(
        ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD"], capture_output=True, text=True, check=False
    )
    versions = [tag.removeprefix("v") for tag in tagged.stdout.split() if re.match(r"v\d", tag)]
    assert versions in ([], [hpe.__version__])
    if versions:
        assert any(heading.startswith(f"[{hpe.__version__}]") for heading in changelog())


def test_version_is_printed_with_the_commit_where_it_is_known() -> None:
    done = subprocess.run([sys.executable, "-m", "hpe", "--version"], capture_output=True, text=True, check=True)
    commit = about_package()["commit"]
    expected = f"hpe {hpe.__version__}" + (f" (commit {commit.removesuffix('-dirty')}" if commit else "\n")
    assert done.stdout.startswith(expected)
