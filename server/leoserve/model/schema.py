"""JSON schemas as the grammar engine takes them: rewritten where it is weaker than the specification, refused where it
would give no answer or too much work.

What it holds by itself and what not was measured on the schemas of tests/text/schemas (bench/grammars.py). The
specification is JSON Schema draft 2020-12 (json-schema.org); of formats, those of RFC 3339 are spelled out here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote

from leoserve.model.patterns import DATE, DATE_TIME, KNOWN, TIME, other_than

MAX_DEPTH = 64  # of objects and lists within each other
MAX_SCHEMAS = 20_000  # within each other
MAX_PROPERTIES = 1_000  # of one object: compiling and masks take the square of it
MAX_PATTERNS = 64  # of one object's property names: each is held against each
MAX_MULTIPLE = 20_000  # without its decimal point: the automaton has a state for each remainder
MAX_ROUNDS = 50  # of references that refer on

Schema = dict[str, Any]

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("prefixItems", "allOf", "anyOf", "oneOf", "items")
SINGLE = ("items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else")
ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$defs")
    + ("definitions", "$schema", "$id", "discriminator")
)
SIZES = {"properties": MAX_PROPERTIES, "required": MAX_PROPERTIES, "patternProperties": MAX_PATTERNS}
FORMATS = {"date": DATE, "time": TIME, "date-time": DATE_TIME}
LONGEST = {"hostname": 253}  # characters (RFC 1035): the engine bounds its labels alone
NOT_CHECKED = frozenset(("password", "binary", "byte"))  # OpenAPI's: how to show or to store a string


class SchemaError(ValueError):
    """A schema that cannot be followed; the message says where and why."""


def prepared(schema: Any) -> Any:
    """An equivalent that the engine follows to the letter, as a copy. Raises SchemaError.

    Where no equivalent can be had, what it allows is less: never a value that breaks the schema.
    """
    if not isinstance(schema, dict):
        if isinstance(schema, bool):
            return schema
        raise SchemaError("a schema is an object, true or false")
    root = copy.deepcopy(schema)
    schemas = list(subschemas(root))
    merges = any(merging(each) for _, each in schemas)
    for path, each in schemas:
        try:
            for rewrite in REWRITES:
                rewrite(each, root)
            if not merges:
                spell_keys_plainly(each)
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from None
    if not has_finite_value(root):
        raise SchemaError("there is no finite value that satisfies the schema")
    return root


def subschemas(root: Schema) -> Iterator[tuple[str, Schema]]:
    """All schemas of a document and where they stand, those that only a `$ref` leads to among them.

    Raises SchemaError when there are too many, or when they are too deep within each other.
    """
    waiting: list[tuple[str, Any, int]] = [("#", root, 0)]
    seen: set[int] = set()
    while waiting:
        path, each, depth = waiting.pop()
        if not isinstance(each, dict) or id(each) in seen:
            continue
        if depth > MAX_DEPTH or len(seen) >= MAX_SCHEMAS:
            raise SchemaError(f"more than {MAX_SCHEMAS} schemas, or more than {MAX_DEPTH} levels of them")
        seen.add(id(each))
        yield path, each
        waiting.extend((f"{path}/{key}", part, depth + 1) for key, part in parts(each))
        if isinstance(reference := each.get("$ref"), str):
            waiting.append((reference[:80], target(root, reference), depth))


def parts(schema: Schema) -> Iterator[tuple[str, Any]]:
    """The schemas that one consists of."""
    for key in MAPS:
        if isinstance(held := schema.get(key), dict):
            yield from ((f"{key}/{name[:80]}", part) for name, part in held.items())
    for key in LISTS:
        if isinstance(held := schema.get(key), list):
            yield from ((f"{key}/{number}", part) for number, part in enumerate(held))
    for key in SINGLE:
        if isinstance(held := schema.get(key), dict):
            yield key, held


def target(root: Schema, reference: str) -> Any:
    """What a reference within the document points at (RFC 6901); None for any other."""
    if not reference.startswith("#"):
        return None
    found: Any = root
    for step in unquote(reference[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found if reference.startswith("#/") or reference == "#" else None


def merging(schema: Schema) -> bool:
    """Whether the engine has to make one schema of several."""
    branches = {"$ref", "anyOf", "oneOf"} & schema.keys()
    return "allOf" in schema or (bool(branches) and len(schema.keys() - ANNOTATIONS) > 1)


def only_what_constrains(schema: Schema, _root: Schema) -> None:
    schema.pop("x-guidance", None)  # the engine's own settings are not the client's


def encode_reference(schema: Schema, _root: Schema) -> None:
    """A reference is a URI (RFC 3986), in which generators leave umlauts and brackets as they are."""
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        schema["$ref"] = "#" + quote(unquote(reference[1:]), safe="/~!$&'()*+,;=:@?")


def bound(schema: Schema, _root: Schema) -> None:
    """Refuse what takes too long to compile."""
    for key, most in SIZES.items():
        if isinstance(held := schema.get(key), dict | list) and len(held) > most:
            raise SchemaError(f"'{key}' can have at most {most} entries")
    multiple = schema.get("multipleOf")
    if isinstance(multiple, int | float) and not isinstance(multiple, bool):
        digits = Decimal(str(multiple)).normalize().as_tuple().digits
        whole = max(abs(multiple), int("".join(map(str, digits))))
        if whole > MAX_MULTIPLE:
            raise SchemaError(f"'multipleOf' can be at most {MAX_MULTIPLE}, not counting its decimal point")


def spell_formats(schema: Schema, _root: Schema) -> None:
    """Dates as patterns: the engine's own take the 30th of February. What is no format of strings goes."""
    form = schema.get("format")
    if not isinstance(form, str):
        return
    types = schema.get("type")
    if form in NOT_CHECKED or (types is not None and "string" not in (types if isinstance(types, list) else [types])):
        del schema["format"]
    elif form in FORMATS:
        del schema["format"]
        add_pattern(schema, FORMATS[form])
    elif form in LONGEST:
        most = schema.get("maxLength", LONGEST[form])
        schema["maxLength"] = min(most, LONGEST[form]) if isinstance(most, int) else most


def add_pattern(schema: Schema, pattern: str) -> None:
    if "pattern" in schema:
        schema["allOf"] = [*schema.get("allOf", []), {"pattern": pattern}]
    else:
        schema["pattern"] = pattern


def spell_patterns(schema: Schema, _root: Schema) -> None:
    """Patterns that generators write with a look-ahead, which is not regular in general, without one."""
    if isinstance(pattern := schema.get("pattern"), str):
        schema["pattern"] = KNOWN.get(pattern, pattern)


def name_properties(schema: Schema, root: Schema) -> None:
    """`propertyNames` in terms of other keywords, where that is possible: the engine does not know it."""
    names = schema.get("propertyNames")
    if isinstance(names, dict) and isinstance(names.get("$ref"), str) and not names.keys() - ANNOTATIONS - {"$ref"}:
        names = target(root, names["$ref"])
    if names is None or "patternProperties" in schema:
        return
    said = names.keys() - ANNOTATIONS - {"type"} if isinstance(names, dict) else set()
    value = schema.get("additionalProperties", True)
    if names is True or (isinstance(names, dict) and not said and names.get("type", "string") == "string"):
        del schema["propertyNames"]
    elif said in ({"enum"}, {"const"}):
        named = names["enum"] if "enum" in said else [names["const"]]
        given = schema.get("properties", {})
        schema["properties"] = {name: given.get(name, value) for name in named if isinstance(name, str)}
        schema["additionalProperties"] = False
        del schema["propertyNames"]
    elif said == {"pattern"} and not schema.get("properties") and not schema.get("required"):
        schema["patternProperties"], schema["additionalProperties"] = {names["pattern"]: value}, False
        del schema["propertyNames"]


def count_properties(schema: Schema, _root: Schema) -> None:
    """Refuse a least number of properties with names of the model's choice: it may choose one twice."""
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    if not isinstance(least, int) or not isinstance(required, list):
        return
    if least <= len(set(map(str, required))):
        schema.pop("minProperties", None)
    elif least > 1 and schema.get("additionalProperties", True) is not False | bool(schema.get("patternProperties")):
        raise SchemaError("'minProperties' above 1 is supported only where 'additionalProperties' is false")


def spell_keys_plainly(schema: Schema) -> None:
    """An object that declares properties has these alone where its schema says nothing of others; where it does, their
    names become a pattern: the engine would let one that is declared pass in another spelling ("\\u0061" for "a").

    A model that may go on with names of its own often does so until its budget is spent, and schemas that programs make
    of classes leave it out. Where names have patterns already, further ones are not offered.
    """
    value = schema.get("additionalProperties", True)
    declared, required = schema.get("properties", {}), schema.get("required", [])
    if value is False or not isinstance(declared, dict) or not isinstance(required, list):
        return
    unsaid = "additionalProperties" not in schema and declared and set(map(str, required)) <= declared.keys()
    if "patternProperties" in schema or unsaid:
        schema["additionalProperties"] = False
    elif declared or required:
        declared = declared | {name: value for name in required if isinstance(name, str) and name not in declared}
        pattern = other_than(list(declared))
        if pattern is None:
            return
        schema["properties"] = declared
        schema["patternProperties"], schema["additionalProperties"] = {pattern: value}, False


REWRITES: Sequence[Callable[[Schema, Schema], None]] = (
    only_what_constrains,
    encode_reference,
    bound,
    spell_patterns,
    spell_formats,
    name_properties,
    count_properties,
)


def has_finite_value(root: Schema) -> bool:
    """Whether some finite value may satisfy the schema; a recursion without a way out has none.

    The least fixed point over all schemas; what one asks beside its structure is not looked at. Raises SchemaError.
    """
    schemas = [each for _, each in subschemas(root)]
    finite: set[int] = set()
    for _ in range(MAX_ROUNDS):
        schemas.reverse()  # first what others consist of, mostly; then the other way, for references that lead on
        before = len(finite)
        finite.update(id(each) for each in schemas if id(each) not in finite and is_finite(each, root, finite))
        if len(finite) == before or id(root) in finite:
            return id(root) in finite
    raise SchemaError(f"references refer on more than {MAX_ROUNDS} times")


def is_finite(schema: Any, root: Schema, known: set[int]) -> bool:
    """Whether a schema has a finite value, given those that do."""
    if not isinstance(schema, dict):
        return schema is not False

    def holds(part: Any) -> bool:
        return id(part) in known if isinstance(part, dict) else part is not False

    reference = schema.get("$ref")
    if isinstance(reference, str) and not holds(target(root, reference)):
        return False
    if not all(map(holds, listed(schema, "allOf"))):
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(map(holds, listed(schema, key))):
            return False
    return has_finite_kind(schema, holds)


def has_finite_kind(schema: Schema, holds: Callable[[Any], bool]) -> bool:
    types = schema.get("type")
    kinds = set(types) if isinstance(types, list) else {types}
    if kinds - {"object", "array"} or "const" in schema or "enum" in schema:
        return True
    declared = schema.get("properties", {})
    if not isinstance(declared, Mapping):
        declared = {}
    if "object" in kinds and all(holds(declared.get(name, True)) for name in listed(schema, "required")):
        return True
    first = listed(schema, "prefixItems") or listed(schema, "items")
    least = schema.get("minItems", 0)
    rest = schema.get("items", True) if not isinstance(schema.get("items"), list) else True
    return "array" in kinds and all(map(holds, first[:least])) and (least <= len(first) or holds(rest))


def listed(schema: Schema, key: str) -> list[Any]:
    held = schema.get(key, [])
    return held if isinstance(held, list) else []
