"""What README.md, the docs and the head comments say can be typed: commands parse, Python runs, paths exist.

One rule for code on pages. ``sh`` blocks are parsed by hpe's own command line; ``python`` blocks of a page run in their
order and in one namespace, here or in a test that names the page; ``yaml`` blocks are read. A block that needs what a
test does not have is behind a line ``<!-- needs: WHAT -->``. A block without a language is no code.
"""

import argparse
import ast
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser
from typer.core import TyperCommand

import hpe
from hpe.config.run import RunConfig
from hpe.config.strict_yaml import load
from hpe.core.errors import UserError
from hpe.data.images import encode_jpeg
from hpe.models import run_folder
from hpe.stream.shard_sets import ShardSet, resolve
from hpe.study.config import StudyConfig
from tests import made, test_config_page
from tests.test_cli import EVERY

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
MARKDOWN = (*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md")))
COMMENTED = tuple(
    path
    for folder in ("configs", "launch", "docker")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".yaml", ".sh") or path.name == "Dockerfile"
)
KNOWN = dict(EVERY)
BEGINS = r"(?:[A-Z_]+=\S+ +)*(?:hpe|accelerate launch|torchrun|sbatch)\s"
NO_COMMANDS = ("hpe needs Python 3.11 to 3.14",)  # a message, in the table of trouble
PROGRAMS = {"hpe", "accelerate", "torchrun", "sbatch", "make", "pip", "python", "source", "tensorboard", "git"}
"""What `sh` blocks may start: the first four are parsed, the others are not hpe's."""
NUMBERS = {"N": "2", "K": "0"}  # what stands for a number in what is shown


class Shown(NamedTuple):
    """A command as a page shows it; a mention in prose may leave out what a command needs."""

    page: str
    text: str
    mention: bool


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8").replace("\\\n", "")


class Block(NamedTuple):
    """A fenced block of a page; ``needs``: what it needs that tests do not have, empty for nothing."""

    needs: str
    language: str
    code: str


def fenced(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = re.findall(r"(?:^<!-- needs: (.+) -->\n+)?^```([^`\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(*one) for one in found]


def blocks(text: str, language: str) -> list[str]:
    """The code of a page in a language, without that which needs what tests do not have."""
    return [one.code for one in fenced(text) if one.language == language and not one.needs]


def spans(text: str) -> list[str]:
    """What stands in backticks, also over the end of a line; a table's cells hold ``\\|`` for ``|``."""
    prose = re.sub(r"^```.*?^```$", "\n", text, flags=re.MULTILINE | re.DOTALL)
    return [
        span.replace("\n", " ").replace("\\|", "|")
        for part in re.split(r"\n\s*\n|^\|", prose, flags=re.MULTILINE)
        for span in re.findall(r"`([^`]+)`", part)
    ]


def comments(text: str) -> list[str]:
    """Lines of comments, also behind YAML's values."""
    return [match[1] for line in text.splitlines() if (match := re.search(r"(?:^|\s)#\s+(.*)$", line))]


def shown() -> Iterator[Shown]:
    for page in MARKDOWN:
        text, name = text_of(page), str(page.relative_to(ROOT))
        for line in "\n".join(blocks(text, "sh")).splitlines():
            if re.match(BEGINS, line):
                yield Shown(name, line, mention=False)
        for span in spans(text):
            if re.match(BEGINS, span) and span not in NO_COMMANDS:
                yield Shown(name, span, mention=True)
    for page in COMMENTED:
        text, name = text_of(page), str(page.relative_to(ROOT))
        for line in comments(text):
            if match := re.search(rf"(?:^|:\s+)({BEGINS}.*)$", line):
                yield Shown(name, match[1], mention=False)
            for span in spans(line):
                if re.match(BEGINS, span):
                    yield Shown(name, span, mention=True)
        if page.suffix == ".sh":
            for line in re.findall(rf"^\s*({BEGINS}.*)$", text, re.MULTILINE):
                yield Shown(name, line, mention=False)


def words_of(text: str) -> list[str]:
    """A command's words without comment and ``…``, an option's value excepted; numbers for N and K."""
    kept: list[str] = []
    for word in shlex.split(re.sub(r" \[.*'.*\]$", "", text), comments=True):
        if word == "…" and not (kept and kept[-1].startswith("--")):
            continue
        if re.fullmatch(r"\$\{?[@*].*|\$more", word):  # of a script: further words, or none
            continue
        word = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word)  # a default
        word = re.sub(r"\$\{\w+// /,\}", "0,1", word)  # a list of numbers
        kept.append(NUMBERS.get(word, word))
    while kept and re.match(r"[A-Z_]+=", kept[0]):
        del kept[0]
    return kept


def alternatives(words: list[str]) -> Iterator[list[str]]:
    """``hpe landmarks install|draw`` is two commands."""
    for place, word in enumerate(words[:3]):
        if "|" in word and word.islower():
            for one in word.split("|"):
                yield [*words[:place], one, *words[place + 1 :]]
            return
    yield words


def parsed_by(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    try:
        return parser.parse_args(words)
    except SystemExit as error:
        raise AssertionError(f"the launcher does not take {words}") from error


def behind_launcher(words: list[str]) -> list[str]:
    """The words of ``hpe`` in a launcher's command; what the launcher reads is read by its own parser."""
    if words[0] == "sbatch":
        script = next(place for place, word in enumerate(words) if word.endswith(".sh"))
        assert (ROOT / words[script]).is_file()
        rest = words[script + 1 :]
        short = not rest or rest[0].endswith((".yaml", ".yml"))  # of `train`, as the script reads it
        return ["hpe", *["train"] * short, *rest]
    if words[0] == "torchrun":
        found = parsed_by(get_args_parser(), words[1:])
        assert found.module
        arguments = [word for word in found.training_script_args if word != "--"]
        module = found.training_script
        if module == "--":
            module, *arguments = arguments
    else:
        found = parsed_by(launch_command_parser(), words[2:])
        assert found.module
        assert found.config_file is None or (ROOT / found.config_file).is_file(), found.config_file
        arguments, module = found.training_script_args, found.training_script
    assert module == "hpe"
    return ["hpe", *arguments]


def parse(one: Shown) -> list[dict[str, object] | None]:
    """What hpe's own parser finds in a command, or each of its alternatives; None: a mention that leaves some out."""
    words = words_of(one.text)
    if words[0] != "hpe":
        words = behind_launcher(words)
    return [parse_hpe(one, some) for some in alternatives(words)]


def parse_hpe(one: Shown, words: list[str]) -> dict[str, object] | None:
    if words[1:] in (["--install-completion"], ["--show-completion"], ["--version"], ["COMMAND", "--help"]):
        return None
    path = tuple(words[1:3]) if tuple(words[1:3]) in KNOWN else tuple(words[1:2])
    groups = {known[:1] for known in KNOWN if len(known) > 1}
    if one.mention and path in groups and len(words) == 2:
        return None
    assert path in KNOWN, f"{one.page}: {one.text}: no such command"
    command: TyperCommand = KNOWN[path]
    try:
        return command.make_context(path[-1], words[1 + len(path) :]).params
    except Exception as error:
        if one.mention and type(error).__name__ == "MissingParameter":
            return None
        raise AssertionError(f"{one.page}: {one.text}: {error}") from error


def parse_line(page: Path, line: str) -> None:
    """Parse a command that a file shows."""
    parse(Shown(page.name, line, mention=False))


ALL = list(dict.fromkeys(shown()))


def test_every_command_that_a_page_shows_parses() -> None:
    for one in ALL:
        parse(one)
    programs = [words_of(one.text)[0] for one in ALL]
    assert {program: programs.count(program) > 1 for program in programs} == dict.fromkeys(
        ("hpe", "accelerate", "torchrun", "sbatch"), True
    )
    for page in (*MARKDOWN, ROOT / "launch/slurm.sh", ROOT / "launch/cpu2.yaml", ROOT / "configs/direction_folds.sh"):
        name = str(page.relative_to(ROOT))
        if page.suffix != ".md" or "\nhpe " in page.read_text(encoding="utf-8"):
            assert any(one.page == name for one in ALL), f"nothing is found in {name}"


def test_the_configs_of_shown_commands_load_with_their_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    loaded = 0
    for one in ALL:
        for found in parse(one):
            path = Path(str((found or {}).get("config")).replace("$here/", "configs/"))
            if path.is_file():
                schema = StudyConfig if path.parent.name == "study" else RunConfig
                overrides = (found or {}).get("overrides") or ()
                assert isinstance(overrides, list | tuple)
                try:
                    load(path, schema, overrides)
                except ValueError as error:
                    raise AssertionError(f"{one.page}: {one.text}: {error}") from error
                loaded += 1
    assert loaded > 15


def test_every_override_and_key_that_prose_names_is_one_of_a_run() -> None:
    keys = {key for key, *_ in test_config_page.rows()}
    keys |= {key.replace("train.N.", "train.").replace("data.train.", "data.val.") for key in keys} | set(keys)
    whole = {key[:end] for key in keys for end in [*[m.start() for m in re.finditer(r"\.", key)], len(key)]}
    named: list[tuple[str, str]] = []
    for page in MARKDOWN:
        for span in spans(text_of(page)):
            for key in re.findall(r"(?:^|--set )((?:data|augment|model|train)\.[\w.]+)(?=[=:\s]|$)", span):
                named.append((page.name, re.sub(r"\.\d+\.", ".N.", key)))
    assert len(named) > 10
    assert [one for one in named if one[1] not in whole and not one[1].endswith((".py", ".safetensors"))] == []


MADE = {"docs/results"}  # by configs/results.sh
PLACE = re.compile(r"(?<![\w/.$}-])((?:configs|launch|docs|docker|tests|hpe)/[\w./-]*\w)")


def test_every_link_and_path_that_a_page_names_is_there() -> None:
    absent, seen = [], 0
    for page in (*MARKDOWN, *COMMENTED):
        text = text_of(page)
        said = text if page.suffix == ".md" else "\n".join(comments(text))
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if page.suffix == ".md" else []
        places = [page.parent / link for link in links if not link.startswith(("http:", "https:"))]
        places += [ROOT / found for found in PLACE.findall(said) if found not in MADE]
        absent += [f"{page.name}: {place}" for place in places if not place.exists()]
        seen += len(places)
    assert absent == []
    assert seen > 40


def test_every_heading_that_a_link_goes_to_is_there() -> None:
    for page in MARKDOWN:
        for target, heading in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", text_of(page)):
            text = text_of(page.parent / target if target else page)
            slugs = [re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in headings(text)]
            assert heading in slugs, f"{page.name}: #{heading}"


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)


def test_a_script_that_a_page_starts_by_its_name_is_executable() -> None:
    named = {
        span.split()[0]
        for page in MARKDOWN
        for span in spans(text_of(page))
        if re.match(r"(?:configs|launch)/\S+\.sh", span)
    }
    assert named
    assert [name for name in named if not os.access(ROOT / name, os.X_OK)] == []


FOREIGN = {"operator torchvision::nms does not exist", "hpe: command not found"}
"""Messages of others in the table of trouble."""


@lru_cache(maxsize=1)
def literals() -> tuple[str, ...]:
    """Every text in the package's source, each module's constants joined as Python joins them; and the Makefile."""
    found = [(ROOT / "Makefile").read_text(encoding="utf-8")]
    for path in sorted((ROOT / "hpe").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def trouble() -> list[str]:
    """The first cells of the tables of trouble."""
    rows = re.findall(r"^\| (.+?) \| .+ \|$", text_of(ROOT / "docs/trouble.md"), re.MULTILINE)
    return [row for row in rows if row != "what you see"]


def told(message: str) -> bool:
    """Whether hpe's source holds each part of this beside ``…``, or the part is a text of it with its holes filled."""
    return all(
        any(part in text for text in literals())
        or any(re.fullmatch(re.escape(text).replace("…", ".+"), part) for text in with_holes(len(part)))
        for part in (part.strip() for part in message.split("…"))
        if part
    )


def with_holes(length: int) -> Iterator[str]:
    """Texts with holes of which enough is fixed to know a message of this length by."""
    return (text for text in literals() if "…" in text and length / 2 < len(text.replace("…", "")) <= length)


def test_every_message_in_the_table_of_trouble_is_one_that_hpe_tells() -> None:
    quoted = [span for cell in trouble() for span in spans(cell) if not re.match(BEGINS, span) or span in NO_COMMANDS]
    assert len(quoted) > 5
    assert set(quoted) >= FOREIGN
    assert [message for message in quoted if message not in FOREIGN and not told(message)] == []
    assert not told("no sample of data.train lacks its label")
    assert not told("… samples do not fit among … ranks")


def test_what_train_tells_of_absent_shards_is_in_the_table_of_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        resolve([ShardSet("shards/ferplus")])
    rows = [re.escape(span).replace("…", ".*") for cell in trouble() for span in spans(cell)]
    assert any(re.match(row, str(caught.value)) for row in rows if row.startswith("shards/"))


def runs_elsewhere(page: Path) -> bool:
    """Whether another test runs the Python of this page."""
    tests = (path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__))
    return any(page.name in text and "exec(" in text for text in (path.read_text(encoding="utf-8") for path in tests))


WITH_PYTHON = [page for page in PAGES if blocks(text_of(page), "python") and not runs_elsewhere(page)]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order and in one namespace, as a reader would paste them: beside a run, its shards and a picture."""
    shards = made.shards(tmp_path / "shards" / "ferplus", counts=(16,), val=8)
    (tmp_path / "runs").mkdir()
    run = made.untrained(tmp_path / "runs" / "ferplus", shards)
    (run / run_folder.METRICS).write_text('{"step": 1, "samples": 8, "split": "val", "emotion/macro_f1": 0.5}\n')
    (tmp_path / "runs" / "demo").mkdir()
    (tmp_path / "runs" / "demo" / "multitask").symlink_to(run)
    (tmp_path / "photos").mkdir()
    for name in ("face.jpg", "photo.jpg", "photos/1.jpg"):
        (tmp_path / name).write_bytes(encode_jpeg(made.picture(3, 1, 0), 95))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(text_of(page), "python"):
        exec(compile(block, page.name, "exec"), names)


def test_every_block_of_code_is_tested_or_says_what_it_needs() -> None:
    for page in MARKDOWN:
        for one in fenced(text_of(page)):
            if one.needs or one.language in ("", "python", "yaml"):
                continue
            assert one.language == "sh", f"{page.name}: no test knows a block in {one.language}: <!-- needs: … -->"
            lines = (line for line in one.code.splitlines() if line.strip() and not line.lstrip().startswith("#"))
            words = (next(word for word in line.split() if not re.match(r"[A-Z_]+=", word)) for line in lines)
            assert set(words) <= PROGRAMS, page.name
    assert any(one.needs for page in PAGES for one in fenced(text_of(page)))
    assert {page.name for page in WITH_PYTHON} >= {"README.md", "api.md"}


def test_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1100


def test_every_page_opens_with_what_it_is_for() -> None:
    for page in PAGES:
        title, empty, first, *_ = page.read_text(encoding="utf-8").splitlines()
        assert title.startswith("# "), page.name
        assert empty == "", page.name
        assert re.match(r"[A-Z`*h]", first), f"{page.name} opens with {first!r}"


def test_the_targets_and_extras_that_pages_name_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = 0
    for page in MARKDOWN:
        text = text_of(page)
        lines = [*spans(text), *"\n".join(blocks(text, "sh")).splitlines()]
        for line in lines:
            if line.startswith("make "):
                words = shlex.split(line.partition(" && ")[0], comments=True)
                named = {word for word in words[1:] if "=" not in word}
                assert named <= targets, line
                told += 1
            for extras in re.findall(r"^pip install '?\.?\[([\w,]+)\]", line):
                assert set(extras.split(",")) <= project["optional-dependencies"].keys(), line
            for version in re.findall(r"hpe-([\d.]+)-py3", line):
                assert version == hpe.__version__, line
    assert told > 4


def test_the_commands_table_names_every_command() -> None:
    cells = [cell for cell in spans(text_of(ROOT / "docs/commands.md")) if cell.startswith("hpe ")]
    named = {tuple(some[1:2]) for cell in cells for some in alternatives(words_of(cell))}
    assert {path[:1] for path in KNOWN} <= named


def test_the_forms_for_issues_ask_for_something() -> None:
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys(), path.name
        assert any(field.get("validations", {}).get("required") for field in form["body"]), path.name


def test_yaml_that_pages_show_is_yaml() -> None:
    for page in MARKDOWN:
        for block in blocks(text_of(page), "yaml"):
            yaml.safe_load(block)
