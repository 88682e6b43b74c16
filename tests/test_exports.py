"""The front door: every name opens, says what it is, and costs nothing before it is used."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import keepline

ROOT = Path(__file__).parent.parent
HEAVY = [
    "aiohttp",
    "structlog",
    "prometheus_client",
    "typer",
    "rich",
    "cryptography",
    "uvloop",
    "msgspec",
    "asyncio",
]
NAMES = [name for name in keepline.__all__ if name != "__version__"]
MODULES = [module.name for module in pkgutil.walk_packages(keepline.__path__, "keepline.")]


def loaded_after(code: str) -> set[str]:
    """The names in `sys.modules` of a fresh interpreter that ran the code."""
    program = f"{code}\nimport sys; print(*sys.modules)"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_all_is_sorted_and_has_no_name_twice() -> None:
    assert keepline.__all__ == sorted(set(keepline.__all__))


def test_the_table_of_homes_lists_exactly_the_public_names() -> None:
    assert sorted(keepline._MODULE_OF) == NAMES


def test_type_checkers_see_each_name_where_the_table_has_it() -> None:
    tree = ast.parse(Path(keepline.__file__).read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: seen.get(name) for name in NAMES} == keepline._MODULE_OF


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_resolves_to_a_described_thing(name: str) -> None:
    value = getattr(keepline, name)
    assert value.__name__ == name
    assert name in importlib.import_module(keepline._MODULE_OF[name]).__all__
    description = inspect.getdoc(value) or ""
    assert len(description.split()) >= 3, f"{name} needs a docstring"
    assert not description.startswith(f"{name}("), (
        f"{name} has only the docstring that dataclass makes"
    )


@pytest.mark.parametrize("name", NAMES)
def test_each_public_method_and_property_is_described(name: str) -> None:
    value = getattr(keepline, name)
    if not inspect.isclass(value):
        return
    bare = [
        member
        for member, attribute in vars(value).items()
        if not member.startswith("_")
        and (
            inspect.isfunction(attribute)
            or isinstance(attribute, (property, classmethod, staticmethod))
        )
        and not inspect.getdoc(
            getattr(value, member) if not isinstance(attribute, property) else attribute
        )
    ]
    listed = inspect.getdoc(value) or ""  # an Attributes section describes properties as well
    bare = [member for member in bare if f"\n    {member}: " not in listed]
    assert not bare, f"{name} has members without a docstring: {', '.join(bare)}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'keepline' has no attribute 'TokenMangler'"):
        keepline.TokenMangler  # noqa: B018


def test_dir_lists_the_public_names() -> None:
    assert set(keepline.__all__) <= set(dir(keepline))


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert keepline.__version__ == project["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(keepline.__version__)}\]", changelog, re.MULTILINE)


def test_importing_the_library_loads_nothing_heavy() -> None:
    assert not loaded_after("import keepline") & {*HEAVY, "typing", "logging"}


def test_catching_our_errors_loads_nothing_heavy() -> None:
    assert not loaded_after("from keepline import KeeplineError") & set(HEAVY)


def test_a_bot_that_receives_tokens_loads_neither_http_nor_logs_nor_metrics_nor_the_command_line() -> (
    None
):
    unwanted = {
        "aiohttp",
        "structlog",
        "prometheus_client",
        "typer",
        "rich",
        "uvloop",
        "cryptography",
    }
    assert (
        not loaded_after("from keepline import TokenReceiver, TokenFeed, TokenSender, Token")
        & unwanted
    )


def test_a_name_is_looked_up_once() -> None:
    keepline.__dict__.pop("Token", None)
    assert keepline.Token is keepline.Token
    assert "Token" in vars(keepline)


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_promises_is_there(module: str) -> None:
    if module.endswith("__main__"):
        return
    loaded = importlib.import_module(module)
    promised = getattr(loaded, "__all__", [])
    assert [name for name in promised if not hasattr(loaded, name)] == []
    assert sorted(set(promised)) == sorted(promised)


@pytest.mark.parametrize("module", MODULES)
def test_no_public_name_of_a_module_is_left_out_of_its_all(module: str) -> None:
    """A class or function without an underscore is public; a module that has some says which."""
    if module.endswith("__main__") or module.startswith("keepline.cli"):
        return  # commands are found by the command line, not imported by name
    tree = ast.parse(Path(importlib.import_module(module).__file__ or "").read_text())
    own = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    promised = getattr(importlib.import_module(module), "__all__", [])
    assert [name for name in own if not name.startswith("_") and name not in promised] == []


def test_every_source_file_parses_as_python_3_11() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 11))
