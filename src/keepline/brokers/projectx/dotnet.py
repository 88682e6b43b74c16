"""Values as .NET writes them in MessagePack, made what it writes in JSON, for our types are those of JSON.

Invariants: pure functions; what is in JSON's form already stays as it is; an unknown name of an enum stays a text,
which then fits nowhere.

Source: ASP.NET Core 9's MessagePack hub protocol (ContractlessStandardResolver, enums as text): members keep the names
of their properties, enums are names, decimals are texts. Whether ProjectX's endpoints speak it is documented nowhere.
"""

import types
from collections.abc import Mapping
from enum import EnumType
from functools import cache
from typing import Any, get_args, get_origin

from msgspec import Struct, structs

from keepline.brokers.messages import OpenIntEnum

__all__ = ["as_json_writes"]


def as_json_writes(value: Any, kind: type[Struct]) -> Any:
    """A map with the keys and enums that JSON has for `kind`; anything else as it is.

    Args:
        value: plain values out of a decoder.
        kind: what the map is to become.
    """
    if not isinstance(value, dict):
        return value
    enums = _enums(kind)
    return {
        key: _number(told, enums[key]) if key in enums else told
        for key, told in ((_camel(name), told) for name, told in value.items())
    }


def _camel(name: Any) -> Any:
    return name[:1].lower() + name[1:] if isinstance(name, str) else name


def _number(told: Any, names: Mapping[str, int]) -> Any:
    return names.get(told.lower(), told) if isinstance(told, str) else told


@cache
def _enums(kind: type[Struct]) -> dict[str, dict[str, int]]:
    """The fields of a type that are enums, each with the numbers of its names in lower case."""
    return {
        one.encode_name: {name.replace("_", "").lower(): int(member) for name, member in named}
        for one in structs.fields(kind)
        if (named := _members(one.type))
    }


def _members(kind: Any) -> list[tuple[str, OpenIntEnum]]:
    parts = get_args(kind) if get_origin(kind) is types.UnionType else (kind,)
    return [
        pair
        for part in parts
        if isinstance(part, EnumType) and issubclass(part, OpenIntEnum)
        for pair in part.__members__.items()
    ]
