"""A route as this server has them: a function takes the request, and the parts of its path, and gives the response.

FastAPI describes the routes. What it would do besides for each request (to read a body, solve dependencies, make
responses of models) none of them has, and it took longer than everything else before the tokenizer.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import request_response


class Route(APIRoute):
    """Calls its dependencies, which take the request and may refuse it, and then its function."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checks = [one.dependency for one in self.dependencies if one.dependency is not None]
        self.app = request_response(self._answer)

    async def _answer(self, request: Request) -> Response:
        for check in self._checks:
            await check(request)
        response: Response = await self.endpoint(request, **request.path_params)
        return response
