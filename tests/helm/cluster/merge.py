"""Server-side apply: who owns which field, and what becomes of an object when one of the owners applies its part.

https://kubernetes.io/docs/reference/using-api/server-side-apply/. Lists are taken as a whole: in these tests nobody but
Helm writes into one.
"""

from __future__ import annotations

import copy
from typing import Any

Path = tuple[str, ...]
Fields = frozenset[Path]
Object = dict[str, Any]

# Who owns what came by POST and by PUT.
CREATE, UPDATE = "create", "update"

_IDENTITY = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}


def leaves(value: Any, path: Path = ()) -> Fields:
    """The path of everything in `value` that is no map with something in it."""
    if isinstance(value, dict) and (value or not path):
        found = frozenset().union(*(leaves(child, (*path, key)) for key, child in value.items()))
        return found - _IDENTITY if not path else found
    return frozenset([path])


def get(value: Any, path: Path) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def conflicts(live: Object, wanted: Object, others: dict[str, Fields]) -> list[tuple[str, Path]]:
    """Fields that another manager owns and that `wanted` would change."""
    mine = leaves(wanted)
    return sorted(
        (manager, path)
        for manager, fields in others.items()
        for path in fields & mine
        if get(live, path) != get(wanted, path)
    )


def apply(live: Object, wanted: Object, before: Fields, others: dict[str, Fields]) -> Object:
    """`live` with `wanted` merged into it, less what its manager applied `before` and no longer wants."""
    result = copy.deepcopy(live)
    owned = frozenset().union(*others.values()) if others else frozenset()
    for path in before - leaves(wanted) - owned:
        _remove(result, path)
    merged: Object = merge(result, wanted)
    return merged


def merge(base: Any, patch: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(patch, dict)):
        return copy.deepcopy(patch)
    return {**base, **{key: merge(base.get(key), value) for key, value in patch.items()}}


def merge_patch(base: Any, patch: Any) -> Any:
    """RFC 7396: null removes."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def _remove(value: Object, path: Path) -> None:
    """Take out what is at `path`, and every map that it leaves empty."""
    head, *rest = path
    child = value.get(head)
    if rest and isinstance(child, dict):
        _remove(child, tuple(rest))
    if not rest or child == {}:
        value.pop(head, None)


def managed_fields(manager: str, api_version: str, fields: Fields) -> Object:
    """The entry of `metadata.managedFields`."""
    tree: Object = {}
    for path in sorted(fields):
        branch = tree
        for key in path:
            branch = branch.setdefault(f"f:{key}", {})
    operation = "Update" if manager in (CREATE, UPDATE) else "Apply"
    entry = {"manager": manager, "operation": operation, "apiVersion": api_version}
    return entry | {"fieldsType": "FieldsV1", "fieldsV1": tree}
