"""The description of the API."""

from __future__ import annotations

import re

from openapi_spec_validator import validate

from .conftest import Running, Start


async def test_the_bodies_are_described_with_ranges_and_defaults(server: Running) -> None:
    document = (await server.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path, name in (("/v1/chat/completions", "ChatRequest"), ("/v1/completions", "CompletionRequest")):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{name}"}
    temperature = schemas["ChatRequest"]["properties"]["temperature"]
    assert temperature["anyOf"] == [{"type": "number", "minimum": 0, "maximum": 2}, {"type": "null"}]
    assert temperature["default"] == 1.0
    for name in ("ChatRequest", "CompletionRequest"):
        assert schemas[name]["additionalProperties"] is False
        missing = [field for field, its in schemas[name]["properties"].items() if not its.get("description")]
        assert not missing
    assert set(schemas["ChatRequest"]["required"]) == {"model", "messages"}


async def test_it_is_valid_and_every_reference_in_it_leads_somewhere(server: Running) -> None:
    answer = await server.http.get("/openapi.json")
    document = answer.json()
    validate(document)
    references = set(re.findall(r'"\$ref":"#/([^"]+)"', answer.text))
    assert len(references) > 20
    for reference in references:
        found = document
        for name in reference.split("/"):
            found = found[name]


async def test_the_address_of_the_server_leads_to_the_page(server: Running) -> None:
    answer = await server.http.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


async def test_the_page_lists_routes_and_fields_and_loads_nothing_from_elsewhere(server: Running) -> None:
    answer = await server.http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    for expected in (
        "POST /v1/chat/completions",
        "GET /health",
        "<code>temperature</code>",
        "number 0…2",
        "max_tokens",
    ):
        assert expected in answer.text
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", answer.text)
    assert "<script" not in answer.text


async def test_behind_a_proxy_that_strips_a_path_the_routes_are_found_and_described(start: Start) -> None:
    server = await start(root_path="/llm")
    assert (await server.http.get("/v1/models")).status_code == 200
    assert (await server.http.get("/openapi.json")).json()["servers"] == [{"url": "/llm"}]
