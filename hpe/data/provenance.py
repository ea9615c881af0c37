"""Which version of this package made a result, by which command, on which machine and from which data."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hpe import __version__
from hpe.core.errors import UserError, redacted
from hpe.data.shards import MANIFEST, Manifest

_FIELDS: Final = {name: name for name in ("dataset", "variant", "licence", "publishable")} | {"crop": "crop_in_words"}


def about_package() -> dict[str, str | None]:
    """Version, and the git commit of the package's checkout (``-dirty``: with changes); None where it is none."""
    return {"hpe": __version__, "commit": _commit(Path(__file__).resolve().parents[2])}


def _commit(folder: Path) -> str | None:
    if not (folder / ".git").exists():  # an installed package may lie inside a checkout of something else
        return None
    command = ("git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def about_command(device: str) -> dict[str, str | None]:
    """The command of this process (None: it is not ``hpe``), and the machine in words: who compares results needs both.

    Args:
        device: that the network computed on.
    """
    import torch

    from hpe.core.devices import cores

    program = Path(sys.argv[0])
    ours = program.name == "hpe" or program.parts[-2:] == ("hpe", "__main__.py")
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        "command": shlex.join(("hpe", *map(redacted, sys.argv[1:]))) if ours else None,
        "machine": f"{device}: {name}, {cores()} cores, torch {torch.__version__}",
    }


def processor() -> str:
    """The processor's name, or its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def about_shards(urls: Sequence[str]) -> dict[str, list[str]]:
    """Dataset, variant, licence, its bounds, crop rule and notes from the manifests beside local shards, each once."""
    folders = dict.fromkeys(Path(url).parent for url in urls)
    manifests = []
    for folder in folders:
        if (folder / MANIFEST).is_file():
            try:
                manifests.append(Manifest.load(folder))
            except UserError:  # the figures do not depend on it
                continue
    about = {
        name: list(dict.fromkeys(str(getattr(one, field)) for one in manifests)) for name, field in _FIELDS.items()
    }
    return about | {"notes": list(dict.fromkeys(note for one in manifests for note in one.notes))}
