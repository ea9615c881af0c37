"""What the packages say of themselves."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import hpe

HOME = Path(hpe.__file__).parent
PACKAGES = sorted(init.parent for init in HOME.glob("*/**/__init__.py"))
LONGEST, MOST_PARAMETERS = 60, 8
REASONS: dict[str, str] = {}
"""Why a function may be longer, or take more parameters. Commands may: Typer reads a parameter per option."""
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


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_module_is_imported_without_a_warning(package: Path) -> None:
    for file in package.glob("*.py"):
        if file.stem not in ("__init__", "__main__"):
            importlib.import_module(".".join(file.relative_to(HOME.parent).with_suffix("").parts))


def _is_command(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(one).startswith("app.command(") for one in function.decorator_list)


def _parameters(function: ast.FunctionDef) -> int:
    given = function.args
    return len([one for one in (*given.posonlyargs, *given.args, *given.kwonlyargs) if one.arg not in ("self", "cls")])


def test_a_function_is_short_and_takes_few_parameters_or_has_a_reason() -> None:
    found = {
        f"{file.relative_to(HOME).as_posix()}: {one.name}"
        for file in HOME.rglob("*.py")
        for one in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(one, ast.FunctionDef) and not _is_command(one)
        if (one.end_lineno or 0) - one.lineno >= LONGEST or _parameters(one) > MOST_PARAMETERS
    }
    assert found == set(REASONS)
