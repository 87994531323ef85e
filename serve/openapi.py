"""OpenAPI description of the JSON API."""

from typing import Any

Schema = dict[str, Any]


def description(version: str) -> Schema:
    """The document, OpenAPI 3.1.

    Args:
        version: of clipglot.
    """
    asked = [
        _parameter("model", "integer", "number of the model, as /info lists them", 0),
        _parameter("limit", "integer", "results of an answer, at most 200", 40),
        _parameter("offset", "integer", "results to leave out at the beginning: next_offset of the answer before", 0),
        _parameter("text", "string", "choose from images with a caption that holds this text, in any case"),
        _parameter("language", "string", "language tag of that caption"),
        _parameter("cache", "integer", "choose from the images of one cache, by its number"),
        _parameter("fold", "boolean", "fold near-duplicates under the better result", True),
    ]
    query = _parameter("q", "string", "text; `a dog +snow -leash` adds and takes away", required=True)
    labels = [
        _parameter("label", "string", "text to choose from; repeat it", required=True, several=True),
        _parameter("model", "integer", "number of the model", 0),
    ]
    row = _parameter("row", "integer", "row of an image, from a result", required=True, where="path")
    size = [
        _parameter("side", "integer", "pixels: 128, 256, 512 or 1024; others are rounded up", 256),
        _parameter("whole", "boolean", "cut nothing", False),
        _parameter("v", "string", "image_version of /info, for answers that a client may keep"),
    ]
    image = {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
    results, labelled = _answer("Results"), _answer("Labels")
    webp = {"200": {"description": "the image", "content": {"image/webp": {}}}, "304": {"description": "unchanged"}}
    paths: dict[str, Schema] = {
        "/search": {
            "get": _operation("search", "Images that fit a text", [query, *asked], results),
            "post": _operation("searchByImage", "Images like one that is sent", asked, results, body=image),
        },
        "/similar/{row}": {"get": _operation("similar", "Images like one of a cache", [row, *asked], results)},
        "/image/{row}": {"get": _operation("image", "Thumbnail of an image", [row, *size], webp)},
        "/row/{row}": {"get": _operation("row", "Key and captions of an image of a cache", [row], _answer("Image"))},
        "/labels/{row}": {
            "get": _operation("labels", "Zero-shot classification of an image of a cache", [row, *labels], labelled)
        },
        "/labels": {
            "post": _operation(
                "labelsOfImage", "Zero-shot classification of an image that is sent", labels, labelled, body=image
            )
        },
        "/info": {"get": _operation("info", "Models, caches and languages", [], _answer("Info"))},
        "/health": {"get": _operation("health", "Whether the server answers", [], _answer("Health"))},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "clipglot search", "version": version},
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}
SCHEMAS: dict[str, Schema] = {
    "Results": _object(
        model=_TEXT,
        query={"type": ["string", "null"]},
        num_searched={**_INTEGER, "description": "images that pass the filters"},
        next_offset={"type": ["integer", "null"], "description": "null at the end"},
        took_ms=_NUMBER,
        hits=_list({"$ref": "#/components/schemas/Hit"}),
    ),
    "Hit": _object(
        row=_INTEGER,
        cache=_INTEGER,
        key=_TEXT,
        score={**_NUMBER, "description": "cosine"},
        captions=_list(_object(text=_TEXT, language=_TEXT)),
        alike=_list({**_INTEGER, "description": "rows of near-duplicates that are folded under this result"}),
    ),
    "Image": _object(row=_INTEGER, cache=_INTEGER, key=_TEXT, captions=_list(_object(text=_TEXT, language=_TEXT))),
    "Labels": _object(labels=_list(_object(label=_TEXT, probability=_NUMBER, cosine=_NUMBER))),
    "Info": _object(
        version=_TEXT,
        models=_list(_object(name=_TEXT, context_length=_INTEGER)),
        caches=_list(_object(name=_TEXT, images=_INTEGER, captions=_INTEGER)),
        languages={"type": "object", "additionalProperties": _INTEGER},
        num_images=_INTEGER,
        image_version={**_TEXT, "description": "pass it as v to /image, and its answers may be kept for ever"},
        examples=_list(_TEXT),
    ),
    "Health": _object(status=_TEXT),
    "Error": {**_object(error=_TEXT), "description": "with `key` where an image cannot be read"},
}


def _parameter(
    name: str,
    kind: str,
    told: str,
    default: Any = None,
    *,
    required: bool = False,
    several: bool = False,
    where: str = "query",
) -> Schema:
    schema: Schema = _list({"type": kind}) if several else {"type": kind}
    if default is not None:
        schema["default"] = default
    return {"name": name, "in": where, "description": told, "required": required, "schema": schema}


def _operation(name: str, told: str, parameters: list[Schema], answers: Schema, body: Schema | None = None) -> Schema:
    schema = {"$ref": "#/components/schemas/Error"}
    error = {"description": "what is wrong", "content": {"application/json": {"schema": schema}}}
    found: Schema = {"operationId": name, "summary": told, "parameters": parameters}
    if body is not None:
        found["requestBody"] = body
    return found | {"responses": answers | {"4XX": error, "503": error}}


def _answer(name: str) -> Schema:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"200": {"description": "the answer", "content": {"application/json": {"schema": schema}}}}
