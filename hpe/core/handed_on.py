"""Names that a package hands on from its files, each imported when it is first used."""

import importlib
from collections.abc import Callable, Mapping


def handed_on(package: str, files: Mapping[str, str]) -> Callable[[str], object]:
    """The ``__getattr__`` of a package.

    Late, so that importing one file of a package does not import everything that its command needs.

    Args:
        package: its ``__name__``.
        files: each name, and the file of the package that defines it.
    """

    def found(name: str) -> object:
        if name not in files:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{files[name]}"), name)

    return found
