"""What the packages say of themselves."""

import ast
import re
from pathlib import Path

import pytest

import hpe

PACKAGES = sorted(init.parent for init in Path(hpe.__file__).parent.glob("*/**/__init__.py"))
_LISTED = re.compile(r"^ .*?([a-z_0-9]+\.py|[a-z_0-9]+/)  ", re.MULTILINE)


def test_every_package_is_found() -> None:
    assert {"core", "train", "bench"} <= {package.name for package in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_the_list_of_a_package_names_each_of_its_modules_and_no_other(package: Path) -> None:
    said = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    assert said is not None
    modules = {file.name for file in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    below = {f"{init.parent.name}/" for init in package.glob("*/__init__.py")}
    assert {*_LISTED.findall(said)} - {"__main__.py"} == modules | below
