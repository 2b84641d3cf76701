"""Makes what the chart says of its values from `values.schema.yaml` and the server's options.

usage: python helm/values.py [--check]

Writes leoserve/values.yaml, leoserve/values.schema.json and the tables in leoserve/README.md. With --check nothing is
written: names what is stale, and exits with 1 if something is.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from leoserve.settings import Settings, extra

HERE = Path(__file__).parent
SOURCE = HERE / "values.schema.yaml"
CHART = HERE / "leoserve"
WIDTH = 120
BEGIN, END = "<!-- values: made by helm/values.py -->", "<!-- end of values -->"

# What the chart itself tells the server, by these options or by variables.
CHARTS_OWN = frozenset(
    {"api_key", "api_key_file", "config", "download_dir", "hf_token", "host", "model", "port", "revision"}
    | {"shutdown_grace"}
)

# What a validator of `Settings` refuses that its schema does not say.
PATTERNS = {"root_path": "^(/.*)?$"}

Schema = dict[str, Any]


def option_schemas() -> dict[str, Schema]:
    """The schema of each option that a user of the chart may set: type, bounds and description of `Settings`."""
    described = Settings.model_json_schema()["properties"]
    return {
        name: option_schema(described[name], f"{field.description}", extra(field)) | pattern(name)
        for name, field in Settings.model_fields.items()
        if name not in CHARTS_OWN
    }


def pattern(option: str) -> Schema:
    return {"pattern": PATTERNS[option]} if option in PATTERNS else {}


def option_schema(generated: Schema, description: str, told: dict[str, Any]) -> Schema:
    """pydantic's schema in the words of JSON Schema alone, the alternatives of an optional value drawn together."""
    alternatives = generated.get("anyOf", [generated])
    types = [each["type"] for each in alternatives]
    schema: Schema = {"type": types[0] if len(types) == 1 else types}
    for each in alternatives:
        schema |= {key: value for key, value in each.items() if key not in {"type", "title", *told}}
    if "enum" in schema and "null" in types:
        schema["enum"] = [*schema["enum"], None]
    schema.pop("format", None)
    schema["description"] = f"{description}{' In ' + told['unit'] + '.' if told['unit'] else ''}"
    default = generated.get("default")
    schema["x-default"] = told["unset"] if default in (None, [], "") else json.dumps(default)
    return schema | ({} if default is None else {"default": default})


def read_source() -> tuple[dict[str, Schema], dict[str, Schema]]:
    """The values of a deployment and those of a release, every definition in its place."""
    source = cast(dict[str, Any], yaml.safe_load(SOURCE.read_text(encoding="utf-8")))
    options = {"properties": option_schemas()}
    definitions = source["definitions"] | {"options": options}

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(each) for each in node]
        if not isinstance(node, dict):
            return node
        name = node.get("$ref", "").removeprefix("#/definitions/")
        if name == "deployment":
            overrides = {key: {"$ref": f"#/properties/{key}"} for key in source["deployment"]}
            return {"type": "object", "additionalProperties": False, "properties": overrides}
        if name:
            node = definitions[name] | {key: value for key, value in node.items() if key != "$ref"}
        resolved = {key: value if key == "default" else resolve(value) for key, value in node.items()}
        if isinstance(resolved.get("properties"), dict) and "type" not in resolved:
            resolved |= {"type": "object", "additionalProperties": False}
        if isinstance(resolved.get("enum"), list):
            resolved.setdefault("type", "string")
        return resolved

    def section(name: str) -> dict[str, Schema]:
        return {key: resolve(value) for key, value in source[name].items()}

    return section("deployment"), section("release")


def json_schema(values: dict[str, Schema]) -> str:
    """The chart's values.schema.json. Draft 7, which every Helm understands."""
    of_a_parent = {"type": "object", "description": "What a parent chart gives all its charts; nothing of it is read."}

    def plain(node: Any) -> Any:
        if isinstance(node, list):
            return [plain(each) for each in node]
        if not isinstance(node, dict):
            return node
        return {key: plain(value) for key, value in node.items() if key != "x-default"}

    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart leoserve",
        "type": "object",
        "additionalProperties": False,
        "properties": plain(values) | {"global": of_a_parent},
        "allOf": [needed(values)],
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def needed(values: dict[str, Schema]) -> Schema:
    """That every value is there. All have defaults, which null in a user's file takes away."""
    below = {name: needed(each["properties"]) for name, each in values.items() if "default" not in each}
    return {"required": list(values), "properties": below}


def default_of(schema: Schema) -> Any:
    """The default of a value, or of all that is below it."""
    if "default" in schema:
        return schema["default"]
    return {key: default_of(each) for key, each in schema.get("properties", {}).items()}


def values_yaml(values: dict[str, Schema]) -> str:
    """The chart's values.yaml: each default under its description."""
    head = "The values and their defaults. Made by helm/values.py of helm/values.schema.yaml, the file to edit."
    return "\n".join([*comment(head, 0), "", *yaml_lines(values, 0)]) + "\n"


def yaml_lines(values: dict[str, Schema], depth: int) -> Iterator[str]:
    margin = "  " * depth
    for name, schema in values.items():
        yield from comment(schema["description"], depth)
        if "default" not in schema:
            yield f"{margin}{name}:"
            yield from yaml_lines(schema["properties"], depth + 1)
        else:
            text = yaml.safe_dump({name: schema["default"]}, sort_keys=False, allow_unicode=True, width=WIDTH)
            yield textwrap.indent(text.rstrip("\n"), margin)
        if depth == 0:
            yield ""


def comment(text: str, depth: int) -> list[str]:
    margin = "  " * depth + "# "
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)


def rows(values: dict[str, Schema], prefix: str = "") -> Iterator[str]:
    """Lines of a table: name, what is allowed, default, description."""
    for name, schema in values.items():
        if "properties" in schema and "default" not in schema:
            yield from rows(schema["properties"], f"{prefix}{name}.")
        else:
            shown = schema.get("x-default") or f"`{json.dumps(default_of(schema), ensure_ascii=False)}`"
            cells = (f"`{prefix}{name}`", allowed(schema), shown, schema["description"])
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def allowed(schema: Schema) -> str:
    """A schema's type and bounds in a few words."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = " or ".join("list" if each == "array" else each for each in types if each != "null")
    bounds = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    limits = [f"{sign} {schema[key]}" for key, sign in bounds if key in schema]
    return " ".join([words, ", ".join(limits)]).strip()


def tables(deployment: dict[str, Schema], release: dict[str, Schema]) -> str:
    head = ["| value | type | default | what it is |", "|---|---|---|---|"]
    parts = (
        ("Of a deployment", "Each may be overridden for one of `models`.", rows(deployment)),
        ("Of the release", "What a release has once.", rows(release)),
        (
            "The server's options",
            "Below `options`, and in the server's own words. Left out, they are as the last column but one says.",
            rows(option_schemas()),
        ),
    )
    return "\n".join("\n".join(["", f"### {title}", "", text, "", *head, *lines]) for title, text, lines in parts)


def generated() -> dict[Path, str]:
    """What each generated file should hold."""
    deployment, release = read_source()
    values = deployment | release
    readme = CHART / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        CHART / "values.yaml": values_yaml(values),
        CHART / "values.schema.json": json_schema(values),
        readme: f"{before}{BEGIN}\n{tables(deployment, release)}\n\n{END}{after}",
    }


def main(arguments: list[str]) -> int:
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        if arguments == ["--check"]:
            print(f"{path} is stale: run python helm/values.py")
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
