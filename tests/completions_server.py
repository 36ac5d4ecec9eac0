"""A completions server on loopback with a real model behind it, which can also misbehave."""

import contextlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from processes import on_loopback

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.hf import sample_leaves
from anytime_lab.prompts import decode
from anytime_lab.tree import Leaf


@dataclass
class Behaviour:
    """What the server does, and what was asked of it.

    Attributes:
        ids: Whether it tells token ids (as vLLM) or text alone.
        past_end: Text that it sends after the think-end marker (a server that knows no stop ids).
        break_after: Tokens after which it breaks the first stream off.
        refuse: A message to refuse completions with.
        error_after: Tokens after which a stream carries an error.
        hang: Seconds of silence before each event.
        context: Told as max_model_len.
        join: Tokens in an event.
        requests: Bodies of completions, in order.
    """

    ids: bool = True
    past_end: str = ""
    break_after: int | None = None
    refuse: str = ""
    error_after: int | None = None
    hang: float = 0.0
    context: int | None = 1024
    join: int = 1
    requests: list = field(default_factory=list)
    sent: int = 0

    @property
    def streamed(self):
        return [r for r in self.requests if r.get("stream")]

    @property
    def asked(self):
        return [r for r in self.requests if not r.get("stream")]


@contextlib.contextmanager
def serving(engine, tokenizer, **behaviour):
    """Yields (url, Behaviour). No thread of it is left afterwards."""
    told = Behaviour(**behaviour)
    lock = threading.Lock()
    over = threading.Event()
    open_ones: set[socket.socket] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def setup(self):
            super().setup()
            open_ones.add(self.connection)
            if over.is_set():
                self.connection.shutdown(socket.SHUT_RDWR)

        def finish(self):
            open_ones.discard(self.connection)
            with contextlib.suppress(OSError):  # the client hung up
                super().finish()

        def reply(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            with contextlib.suppress(OSError):  # the client hung up
                self.end_headers()
                self.wfile.write(data)

        def do_GET(self):
            assert self.path == "/v1/models"
            self.reply(200, {"data": [{"id": "served", "max_model_len": told.context}]})

        def do_POST(self):
            assert self.path == "/v1/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.requests.append(body)
            if told.refuse:
                return self.reply(400, {"error": {"message": told.refuse}})
            if not body.get("stream"):
                if over.wait(told.hang):
                    return
                return self.reply(200, {"choices": self.summaries(body)})
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client hung up
                for event in self.thinking(body):
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                    self.wfile.flush()

        def choice(self, ids, **more):
            text = decode(tokenizer, engine.tokens, ids)
            return {"text": text, **({"token_ids": ids} if told.ids else {}), **more}

        def think(self, body):
            sampling = Sampling(
                temperature=body["temperature"], max_summary_tokens=body["max_tokens"]
            )
            return engine.think(body["prompt"], sampling, body["seed"])

        def thinking(self, body):
            with lock:
                trunks = self.think(body)
            waiting = []
            first = len(told.streamed) == 1
            for n in range(body["max_tokens"]):
                if told.error_after == n:
                    yield {"error": {"message": "out of memory <b>"}}
                if first and told.break_after == n:
                    return
                if over.wait(told.hang):
                    return
                with lock:
                    waiting += trunks.step()
                told.sent += 1
                if len(waiting) == told.join or trunks.ends[0]:
                    yield {"choices": [self.choice(waiting)]}
                    waiting = []
                if trunks.ends[0]:
                    break
            if told.past_end:
                yield {"choices": [{"text": told.past_end}]}
            reason = "stop" if trunks.ends[0] else "length"
            yield {"choices": [{"text": "", "finish_reason": reason}]}
            self.wfile.write(b"data: [DONE]\n\n")

        def summaries(self, body):
            # the whole prompt as a thinking of no tokens: the summary is what follows it
            with lock:
                trunks = self.think(body)
                leaves = plain_leaves(trunks, body["n"])
            return [
                self.choice(
                    list(leaf.summary),
                    logprobs={"token_logprobs": list(leaf.logprobs)},
                    finish_reason="stop" if leaf.finished else "length",
                )
                for leaf in leaves
            ]

    def plain_leaves(trunks, count) -> list[Leaf]:
        *start, last = trunks.prompts[0]  # its last token stands for the forced text
        again = engine.think(start, trunks.sampling, None)
        again.generator = trunks.generator
        again.tokens = type(trunks.tokens)(
            **{**vars(trunks.tokens), "cut_ids": (last,), "header_ids": (last,)}
        )
        return sample_leaves(again, [[0] * count])[0]

    with on_loopback(Handler) as url:
        try:
            yield url, told
        finally:
            over.set()  # a connection that is opened from now on shuts itself
            for connection in list(open_ones):  # kept alive by a client, or in mid-stream
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
