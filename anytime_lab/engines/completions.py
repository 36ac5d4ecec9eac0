"""A client of OpenAI-compatible completions over HTTP: streamed and whole, errors as sentences.

Speaks to `vllm serve`, llama.cpp's server and others that have `/v1/completions`.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Generator, Iterator
from typing import Any

import httpx

from anytime_lab.engines.thoughts import ThinkingError

PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be better the next time


class PassingError(ThinkingError):
    """What may pass: no connection, silence, an overload. The same request may succeed later."""


class CompletionsClient:
    """One server.

    Args:
        url: Such as `http://localhost:8000`; `/v1` is added where it lacks.
        api_key: Sent as a bearer token where there is one.
        timeout: Seconds without a byte after which the server counts as gone.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 60.0):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url is {url!r}; expected http://… or https://…")
        url = url.rstrip("/")
        self.url = url if url.endswith("/v1") else f"{url}/v1"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Timeout(timeout, connect=min(timeout, 5.0))
        # A connection for each request, so that one can be cut off (`Call.close`).
        once = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(headers=headers, timeout=limits, limits=once)
        self.timeout = timeout

    def models(self) -> list[dict[str, Any]]:
        """What the server serves, as it says."""
        with Call(self, "GET", "/models") as call:
            found = call.json().get("data")
        if not isinstance(found, list) or not all(isinstance(m, dict) and "id" in m for m in found):
            raise ThinkingError(f"{self.url}/models does not list models; is this the right URL?")
        return found

    def complete(self, body: dict[str, Any]) -> Call:
        """A completion, sent when it is opened."""
        return Call(self, "POST", "/completions", body)


class Call:
    """One request and its answer, which another thread may cut off by `hang_up`.

    Use as a context, or `open` it and `close` it.
    """

    def __init__(self, client: CompletionsClient, method: str, path: str, body: Any = None):
        self.client, self.where = client, f"the server at {client.url}"
        self.request = client.http.build_request(method, client.url + path, json=body)
        self.request.extensions["trace"] = self._trace
        self.cut_off = False
        self._link: socket.socket | None = None
        self._response: httpx.Response | None = None

    def open(self) -> Call:
        """Send the request and wait for the head of the answer.

        Raises:
            ThinkingError: it does not come, or it is a refusal.
        """
        with self._told():
            self._response = self.client.http.send(self.request, stream=True)
            if self._response.is_error:
                self._response.read()
                told = f"{self.where} refused: {_complaint(self._response)}"
                passing = self._response.status_code in PASSING
                raise (PassingError if passing else ThinkingError)(told)
        return self

    def close(self) -> None:
        """Give the connection back, read to its end or not."""
        if self._response is not None:
            self._response.close()

    __enter__ = open

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def hang_up(self) -> None:
        """Cut the connection, from any thread: what waits for it fails at once."""
        self.cut_off = True
        if self._link is not None:
            with contextlib.suppress(OSError):  # it has ended already
                self._link.shutdown(socket.SHUT_RDWR)

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._link = info["return_value"].get_extra_info("socket")
            if self.cut_off:  # while it connected
                self.hang_up()

    def json(self) -> dict[str, Any]:
        """The whole answer."""
        with self._told():
            self._response.read()
            found = self._response.json()
        if not isinstance(found, dict):
            raise ThinkingError(f"{self.where} answered with no JSON object.")
        return found

    def events(self) -> Generator[dict[str, Any], None, None]:
        """The data of server-sent events as they come, until the server says that it is done.

        Raises:
            ThinkingError: the stream broke off, or holds an error.
        """
        with self._told():
            for line in self._response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event or event.get("object") == "error":
                    raise ThinkingError(f"{self.where} failed: {_error_text(event)}")
                yield event
        raise ThinkingError(f"{self.where} broke the stream off.")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what httpx throws into sentences."""
        try:
            yield
        except httpx.ConnectError as error:
            raise PassingError(
                f"no server answers at {self.client.url} ({error}). Start one, such as "
                "`vllm serve MODEL`, or give the address of one."
            ) from error
        except httpx.TimeoutException as error:
            raise PassingError(
                f"{self.where} said nothing for {self.client.timeout:g} seconds."
            ) from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise PassingError(f"{self.where} broke off ({error}).") from error
        except ValueError as error:
            raise ThinkingError(f"{self.where} answered with broken JSON ({error}).") from error


def _complaint(response: httpx.Response) -> str:
    try:
        told = _error_text(response.json())
    except ValueError:
        told = response.text[:300]
    return f"{response.status_code} {told or response.reason_phrase}"


def _error_text(event: Any) -> str:
    error = event.get("error", event) if isinstance(event, dict) else event
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)[:500]
