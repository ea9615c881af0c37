"""Names of networks on a hub, such as ``hf://org/name`` or ``hf://org/name@revision``."""

import re
from pathlib import Path
from typing import Final

from hpe.core.errors import UserError
from hpe.models.checkpoints import SHARED_WEIGHTS
from hpe.models.run_folder import PRETRAINED

SCHEME: Final = "hf://"
_WAY_OUT: Final = (
    "check the name, the connection, and for private networks the login (hf auth login); $HF_ENDPOINT names another hub"
)
_NAME: Final = re.compile(r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]{1,100}))?", re.ASCII)


def is_hub_name(name: str) -> bool:
    """Whether a text names a network on a hub."""
    return name.startswith(SCHEME)


def parse(name: str) -> tuple[str, str | None]:
    """Repository and revision of a name.

    Raises:
        UserError: it is not ``hf://org/name``, with or without ``@revision``.
    """
    match = _NAME.fullmatch(name.removeprefix(SCHEME))
    if match is None or not is_hub_name(name):
        raise UserError(f"{name}: expected hf://org/name or hf://org/name@revision")
    return match["repo"], match["revision"]


def local_folder(name: str) -> Path:
    """A copy of a shared network on this machine: its config and its weights, nothing else, in the hub's cache.

    Raises:
        UserError: it is not there, or cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    repo, revision = parse(name)
    try:
        found = snapshot_download(repo, revision=revision, allow_patterns=[PRETRAINED, SHARED_WEIGHTS, "README.md"])
    except Exception as error:  # the hub's HTTP client, and with it what is raised, differs between its versions
        raise UserError(f"{name}: cannot be fetched ({first_line(error)}); {_WAY_OUT}") from error
    if not (Path(found) / PRETRAINED).is_file():
        raise UserError(f"{name}: has no {PRETRAINED}; expected a network that hpe share published")
    return Path(found)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
