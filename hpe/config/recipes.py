"""``hpe configs``: lists and copies the configs that come with hpe, for installs without a checkout."""

import itertools
import re
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError
from hpe.core.files import aside

_PACKAGE: Final = Path(__file__).parents[1]
_END: Final = re.compile(r"\.(?= [A-Z]|$)")


def folder() -> Path:
    """Where the configs are: inside an installed package, or beside it in a checkout."""
    packaged = _PACKAGE / "recipes"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def way_to(path: Path) -> str:
    """The end of a message: the command that puts a config of hpe where this path looks for it; empty: it is none."""
    for name, _ in described():
        home = path
        for _ in Path(name).parts:
            home = home.parent
        if home / name == path:
            return f"; `hpe configs {shlex.quote(str(home))}` copies the configs of hpe there"
    return ""


def described() -> list[tuple[str, str]]:
    """Each config's and script's path below :func:`folder`, and the first sentence of its head comment."""
    paths = sorted(path for path in folder().rglob("*") if path.suffix in (".yaml", ".sh"))
    return [(path.relative_to(folder()).as_posix(), _title(path.read_text(encoding="utf-8"))) for path in paths]


def _title(text: str) -> str:
    """The first sentence of the comment that a file begins with; commands in it are indented."""
    lines = [line for line in text.splitlines() if not line.startswith("#!")]
    words = itertools.takewhile(lambda line: line.startswith("# ") and line[2] != " ", lines)
    comment = " ".join(line.removeprefix("# ") for line in words)
    return comment[: match.end()] if (match := _END.search(comment)) else comment


def copy(out: Path) -> list[Path]:
    """Copy the configs to ``out``, where they may be edited. Identical files that exist already are kept.

    Raises:
        UserError: a config there was edited, or the folder cannot be written; then no config is written.
    """
    texts = {out / name: (folder() / name).read_text(encoding="utf-8") for name, _ in described()}
    try:
        edited = [
            str(path) for path, text in texts.items() if path.exists() and path.read_text(encoding="utf-8") != text
        ]
        if edited:
            raise UserError(f"{', '.join(edited)}: differs from the config that comes with hpe; choose another folder")
        with ExitStack() as all_or_none:
            for path, text in texts.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                part = all_or_none.enter_context(aside(path))
                part.write_text(text, encoding="utf-8")
                if path.suffix == ".sh":
                    part.chmod(0o755)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{out}: cannot write the configs here: {reason}; choose another folder") from error
    return list(texts)
