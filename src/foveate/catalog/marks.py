"""Finds `@implements("slug")` and `@pytest.mark.paper("slug")` in source, without importing it."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from foveate.errors import FoveateError

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def implementations(package: Path) -> dict[str, list[str]]:
    """The public symbols of each slug, as "ops/eca.py:EfficientChannelAttention".

    Raises: FoveateError if a slug is not a literal, or a file is not Python.
    """
    found: dict[str, list[str]] = {}
    for file, tree in _trees(package, "implements"):
        where = file.relative_to(package).as_posix()
        for name, definition in _definitions(tree.body):
            slugs = _slugs(definition.decorator_list, "implements", file)
            if not any(part.startswith("_") for part in name.split(".")):
                _add(found, slugs, f"{where}:{name}")
    return _sorted(found)


def marked_tests(folder: Path) -> dict[str, list[str]]:
    """The tests that check each slug, as pytest names them from the folder above.

    A mark counts on a test, on a class of tests, on one case of a parametrised
    test, or as the module's `pytestmark`; not on a test that is always skipped.

    Raises: FoveateError if a slug is not a literal, or a file is not Python.
    """
    found: dict[str, list[str]] = {}
    for file, tree in _trees(folder, "paper", pattern="test_*.py"):
        where = file.relative_to(folder.parent).as_posix()
        _add(found, _module_slugs(tree, file), where)
        for name, definition in _definitions(tree.body):
            slugs = _slugs(definition.decorator_list, "paper", file)
            if _is_test(name) and not _is_skipped(definition):
                _add(found, slugs, f"{where}::{name.replace('.', '::')}")
    return _sorted(found)


def _trees(folder: Path, word: str, pattern: str = "*.py") -> Iterator[tuple[Path, ast.Module]]:
    """The syntax of each file that has the word in it."""
    for file in sorted(folder.rglob(pattern)):
        source = file.read_bytes()
        if word.encode() in source:
            try:
                yield file, ast.parse(source, filename=str(file))
            except SyntaxError as error:
                raise FoveateError(
                    f"{file}:{error.lineno} is not Python ({error.msg}): "
                    "mend it, and the status of the papers can be read"
                ) from error


def _definitions(body: Iterable[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """A module's classes and functions with their dotted names, but for those inside functions."""
    for node in body:
        if isinstance(node, Definition):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions([*node.body, *node.orelse], prefix)


def _slugs(expressions: Iterable[ast.expr], function: str, file: Path) -> list[str]:
    """The slugs that are given to calls of `function` within the expressions."""
    calls = [
        node
        for expression in expressions
        for node in ast.walk(expression)
        if isinstance(node, ast.Call) and _called(node) == function
    ]
    return [_literal(call, function, file) for call in calls]


def _called(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _literal(call: ast.Call, function: str, file: Path) -> str:
    match call.args:
        case [ast.Constant(value=str(slug))]:
            return slug
    raise FoveateError(
        f"{file}:{call.lineno} gives {function} something other than one literal slug: "
        f'write it out, as in {function}("inceptionnext"), since it is read without running'
    )


def _module_slugs(tree: ast.Module, file: Path) -> list[str]:
    marks = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(name, ast.Name) and name.id == "pytestmark" for name in node.targets)
    ]
    return _slugs(marks, "paper", file)


def _is_test(name: str) -> bool:
    *classes, last = name.split(".")
    return all(part.startswith("Test") for part in classes) and last.startswith(("test", "Test"))


def _is_skipped(definition: Definition) -> bool:
    return any(
        ast.unparse(decorator).removeprefix("pytest.").split("(")[0] == "mark.skip"
        for decorator in definition.decorator_list
    )


def _add(found: dict[str, list[str]], slugs: Iterable[str], where: str) -> None:
    for slug in slugs:
        found.setdefault(slug, []).append(where)


def _sorted(found: dict[str, list[str]]) -> dict[str, list[str]]:
    return {slug: sorted(set(found[slug])) for slug in sorted(found)}
