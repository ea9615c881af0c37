"""One version: in the package, in CITATION.cff, in CHANGELOG.md and in the tag of a release."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hpe
from hpe.data.provenance import about_command, about_package

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


def test_a_result_names_its_command_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("/usr/bin/hpe", "/x/site-packages/hpe/__main__.py"):
        monkeypatch.setattr(sys, "argv", [program, "evaluate", "runs/my run", "--flips"])
        about = about_command("cpu")
        assert about["command"] == "hpe evaluate 'runs/my run' --flips"
        assert re.fullmatch(r"cpu: .+, \d+ cores, torch \d.*", about["machine"] or "")
    monkeypatch.setattr(sys, "argv", ["hpe", "evaluate", "run", "https://me:secret@host/shards?signature=secret"])
    assert "secret" not in str(about_command("cpu")["command"])
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest", "--token", "secret"])
    assert about_command("cpu")["command"] is None
