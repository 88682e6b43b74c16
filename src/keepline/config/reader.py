"""Raw tables become typed sections, driven by the schema alone; an error says which key, where, and what was expected.

Invariants: knows no section by name; never shows a value that could be a secret, only choices, numbers and kinds.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec

from keepline.config.sections import Secret, Section, Text
from keepline.errors import ConfigError
from keepline.files import expanded

__all__ = ["ENVIRONMENT_PREFIX", "FromEnvironment", "Reader", "listed", "nearest"]

ENVIRONMENT_PREFIX = "KEEPLINE__"

S = TypeVar("S", bound=Section)


class FromEnvironment(str):
    """A value as the environment holds it: a text that the schema types later."""

    __slots__ = ("variable",)
    variable: str

    @classmethod
    def of(cls, variable: str, text: str) -> "FromEnvironment":
        value = cls(text)
        value.variable = variable
        return value


class Reader:
    """Reads sections of one file; relative paths start from its directory.

    Args:
        file: named in errors; None when there is none.
        base: where relative paths start.
    """

    def __init__(self, file: Path | None, base: Path) -> None:
        self._file = file
        self._base = base

    def section(self, kind: type[S], path: str, table: Any) -> S:
        """The table as its struct, defaults filled in.

        Raises:
            ConfigError: an unknown or missing key, or a wrong type.
        """
        if kind.short and isinstance(table, str):
            table = {kind.short: table}
        table = self.table(table, path)
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        self.known(table, path, fields)
        values: dict[str, Any] = {}
        for name, field in fields.items():
            where = f"{path}.{name}"
            if name in table:
                values[name] = self._value(field.type, where, table[name])
            elif field.required:
                raise self.error("missing; this key is required", where)
            elif isinstance(field.default, Path):
                values[name] = self._base / field.default
        return kind(**values)

    def table(self, table: Any, path: str) -> dict[str, Any]:
        if not isinstance(table, dict):
            raise self.error(f"expected a table, got {_kind_of(table)}", path, table)
        return table

    def known(self, table: Mapping[str, Any], path: str, known: Iterable[str]) -> None:
        """Refuse a key that the schema does not have, and name the nearest that it has."""
        for key in table:
            if key not in known:
                where = f"{path}.{key}" if path else key
                advice = nearest(key, known) or f"known here: {listed(known)}"
                raise self.error(f"unknown key; {advice}", where, _first_leaf(table[key]))

    def overlay(self, raw: dict[str, Any], keys: Sequence[str], value: object) -> None:
        """Put one value of the environment or of a flag over the file's."""
        table = raw
        for depth, key in enumerate(keys[:-1]):
            inner = table.setdefault(_spelling(table, key), {})
            if not isinstance(inner, dict):
                path = ".".join(keys[: depth + 1]).lower()
                raise self.error("this is one value, not a table", path, value)
            table = inner
        table[_spelling(table, keys[-1])] = value

    def error(self, message: str, path: str, value: Any = None) -> ConfigError:
        """The error about a key, with the file or the environment variable that it came from."""
        if isinstance(value, FromEnvironment):
            return ConfigError(f"environment variable {value.variable}: {message}", key=path)
        return ConfigError(message, key=path, file=self._file)

    def _value(self, kind: Any, path: str, value: Any) -> Any:
        if _is(kind, Secret):
            return self._secret(path, value)
        if element := _element(kind):
            return self._elements(kind, element, path, value)
        if _is(kind, Path):
            return self._path(path, self._convert(Text, path, value, value), value)
        return self._convert(kind, path, value, value)

    def _path(self, path: str, text: str, value: Any) -> Path:
        if not text.startswith("~"):
            return self._base / text
        try:
            return expanded(text, key=path)
        except ConfigError as error:
            raise self.error(str(error.args[0]), path, value) from None

    def _secret(self, path: str, value: Any) -> Secret:
        if isinstance(value, FromEnvironment):
            return Secret(value.strip())
        name = path.rpartition(".")[2]
        variable = ENVIRONMENT_PREFIX + path.upper().replace(".", "__").replace("-", "_")
        elsewhere = "" if "[" in path else f", the environment variable {variable}"
        raise self.error(
            f"a secret does not belong in this file; use {name}_file{elsewhere} or a systemd credential named {path}",
            path,
        )

    def _elements(self, kind: Any, element: Any, path: str, value: Any) -> Any:
        items = self._list(path, value)
        if isinstance(element, type) and issubclass(element, Section):
            items = [self.section(element, f"{path}[{i}]", item) for i, item in enumerate(items)]
        return self._convert(kind, path, items, value)

    def _list(self, path: str, value: Any) -> list[Any]:
        if isinstance(value, FromEnvironment):
            try:
                decoded = msgspec.json.decode(str(value))
            except msgspec.DecodeError:
                decoded = None
            if not isinstance(decoded, list):
                raise self.error('expected a JSON list, for example ["a", "b"]', path, value)
            return decoded
        if isinstance(value, list | tuple):
            return list(value)
        advice = "; put it in brackets" if isinstance(value, str) else ""
        raise self.error(f"expected a list, got {_kind_of(value)}{advice}", path, value)

    def _convert(self, kind: Any, path: str, value: Any, source: Any) -> Any:
        from_environment = isinstance(source, FromEnvironment)
        plain = str(value) if isinstance(value, FromEnvironment) else value
        try:
            return msgspec.convert(plain, kind, strict=not from_environment)
        except msgspec.ValidationError:
            raise self.error(_expectation(kind, value), path, source) from None


def nearest(key: str, known: Iterable[str]) -> str:
    """`did you mean …?` when a known key is close, else the empty text."""
    near = difflib.get_close_matches(key.lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _is(kind: Any, wanted: type) -> bool:
    return kind is wanted or wanted in get_args(kind)


def _element(kind: Any) -> Any:
    """The type of a tuple's elements, None for what is no tuple."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _spelling(table: Mapping[str, Any], key: str) -> str:
    """The key as the file spells it: an environment variable knows neither case nor dashes."""
    plain = key.lower().replace("-", "_")
    return next((known for known in table if known.lower().replace("-", "_") == plain), key.lower())


def _first_leaf(value: Any) -> Any:
    """The environment's value inside a table that the environment made, so that the error names the variable."""
    while isinstance(value, dict) and value:
        value = next(iter(value.values()))
    return value


def _kind_of(value: Any) -> str:
    if isinstance(value, str | list) and not value:
        return f"an empty {'text' if isinstance(value, str) else 'list'}"
    for kind, name in _KINDS.items():
        if isinstance(value, kind):
            return name
    return f"a {type(value).__name__}"


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a table",
    list: "a list",
}


def _expectation(kind: Any, value: Any) -> str:
    """What the type wants and what stands there, in words; a text is shown only among choices."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        got = repr(str(value)) if isinstance(value, str) else _kind_of(value)
        near = nearest(value, choices) if isinstance(value, str) else ""
        return f"expected one of {listed(choices)}, not {got}" + (f"; {near}" if near else "")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"expected {_wanted(kind)}, got {value if number else _kind_of(value)}"


def _wanted(kind: Any) -> str:
    if element := _element(kind):
        return f"a list, each {_wanted(element)}, at least one"
    if get_origin(kind) is Annotated:
        inner, *metas = get_args(kind)
        return next((meta.description for meta in metas if meta.description), _wanted(inner))
    if get_origin(kind) is Literal:
        return f"one of {listed(get_args(kind))}"
    parts = [part for part in get_args(kind) if part is not type(None)]
    if parts:
        return _wanted(parts[0])
    return {bool: "true or false", int: "a whole number", str: "text"}.get(kind, "a table")
