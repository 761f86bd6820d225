"""What a client of the store service is told when a request cannot be granted: one exception, OpenAI's envelope."""

from __future__ import annotations

from lmtower.errors import StoreError


class ApiError(StoreError):
    """A refusal with an HTTP status. Rendered once, at the edge of the service, as OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, object]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def missing(what: str, identity: str) -> ApiError:
    """404 for something that does not exist *for this client*: what others own is not admitted to exist."""
    return ApiError(404, f"No {what} found with id {identity!r}.", code="not_found")


def invalid(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, code="invalid_value", param=param)
