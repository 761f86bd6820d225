"""Embeddings and reranking, asked of the gateway's own personas: prefixes, lanes, usage and limits are its business."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import httpx
import numpy as np

from lmtower.errors import StoreError
from lmtower.stores.access import OPERATOR
from lmtower.stores.client import verified
from lmtower.stores.launch import Personas
from lmtower.stores.snapshot import Floats

PROBE = "lmtower asks which embedding model this is."
SAME_MODEL = 0.99
# a wrong key, a missing persona, an engine that cannot embed: for the operator to mend, the work waits for it
MEND_SECONDS = 10.0


class Unavailable(StoreError):
    """The gateway or the engine cannot answer now. Worth another try after ``seconds``."""

    def __init__(self, message: str, seconds: float = 1.0) -> None:
        super().__init__(message)
        self.seconds = seconds


class Limited(Unavailable):
    """This client has used up a limit, or has no key any more. Others are served; ``status`` is the gateway's."""

    def __init__(self, message: str, seconds: float, status: int, code: str) -> None:
        super().__init__(message, seconds)
        self.status = status
        self.code = code


class Rejected(StoreError):
    """The engine will not embed one of these texts, now or later."""


class Embedder:
    """A client of the gateway. Safe to use from several threads."""

    def __init__(
        self, url: str, key: str, secret: str, personas: Personas, transport: httpx.BaseTransport | None = None
    ) -> None:
        """``key`` is the service's own; ``secret`` lets it name the client that the gateway books the work on."""
        self.personas = personas
        headers = {"authorization": f"Bearer {key}", "x-lmtower-internal": secret, "user-agent": "lmtower-stores"}
        # the gateway is this machine: a proxy of the environment is not on the way
        self._client = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(600, connect=5),
            trust_env=False,
            transport=transport,
            verify=verified(url),
        )

    def close(self) -> None:
        self._client.close()

    def documents(self, texts: Sequence[str], client: str) -> list[bytes]:
        """One little-endian float32 vector a text. ``client`` is on whose behalf, for usage and limits."""
        return self._embed(texts, self.personas.document, client, "batch")

    def query(self, text: str, client: str) -> Floats:
        vector = self._embed([text], self.personas.query, client)[0]
        return np.frombuffer(vector, dtype="<f4").astype(np.float32)

    def probe(self) -> bytes:
        """The vector of a fixed sentence: another model, another vector, whatever the models are called."""
        return self.documents([PROBE], OPERATOR)[0]

    def rerank(self, query: str, texts: Sequence[str], client: str) -> list[tuple[int, float]]:
        """Indices of ``texts`` with their relevance, best first."""
        body = {"model": self.personas.rerank, "query": query, "documents": list(texts)}
        results = self._post("/v1/rerank", body, client)["results"]
        assert isinstance(results, list)
        ranked = [(int(item["index"]), float(item["relevance_score"])) for item in results]
        return sorted(ranked, key=lambda item: -item[1])

    def _embed(self, texts: Sequence[str], persona: str, client: str, lane: str = "") -> list[bytes]:
        body = {"model": persona, "input": list(texts), "encoding_format": "base64"}
        data = self._post("/v1/embeddings", body, client, lane)["data"]
        assert isinstance(data, list)
        ordered = sorted(data, key=lambda item: item["index"])
        if len(ordered) != len(texts):
            raise Unavailable(f"Persona {persona!r} returned {len(ordered)} vectors for {len(texts)} texts.")
        return [_vector(item["embedding"]) for item in ordered]

    def _post(self, path: str, body: Mapping[str, object], client: str, lane: str = "") -> dict[str, object]:
        # what the operator stores is the tower's own work
        headers = {} if client == OPERATOR else {"x-lmtower-on-behalf-of": quote(client, safe="")}
        if lane:
            headers["x-lmtower-lane"] = lane
        try:
            response = self._client.post(path, json=body, headers=headers)
        except httpx.HTTPError as exc:
            raise Unavailable(f"The gateway does not answer: {type(exc).__name__}.") from exc
        if response.status_code in (400, 413, 422):
            raise Rejected(f"Persona {body['model']!r} refused the text: {_reason(response)[0]}")
        if not response.is_success:
            raise _refusal(response, str(body["model"]))
        answer: dict[str, object] = response.json()
        return answer


def _refusal(response: httpx.Response, persona: str) -> Unavailable:
    wait = response.headers.get("retry-after", "")
    message, code = _reason(response)
    status = response.status_code
    seconds = float(wait) if wait.isdigit() else 1.0 if status in (429, 502, 503, 504) else MEND_SECONDS
    if status == 429 or code == "client_unknown":
        return Limited(message, seconds, status, code)
    return Unavailable(f"Persona {persona!r}: HTTP {status}: {message}", seconds)


def _vector(value: str | list[float]) -> bytes:
    return base64.b64decode(value) if isinstance(value, str) else np.asarray(value, dtype="<f4").tobytes()


def _reason(response: httpx.Response) -> tuple[str, str]:
    """The message and the code of an error."""
    try:
        error = response.json()["error"]
        return str(error["message"])[:500], str(error.get("code") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:200], ""


def same_model(left: bytes, right: bytes) -> bool:
    if len(left) != len(right):
        return False
    one, other = np.frombuffer(left, dtype="<f4"), np.frombuffer(right, dtype="<f4")
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return norms > 0 and float(one @ other) / norms >= SAME_MODEL
