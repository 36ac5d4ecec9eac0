"""A completions server on loopback with a real model behind it, which can also misbehave."""

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import torch
from processes import on_loopback

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.hf import generate_rows


@dataclass
class Behaviour:
    """What the server does, and what it was asked.

    Attributes:
        model: What is served.
        tokens: Its format.
        served: Names of its models.
        failures: Requests that it refuses first, with a status.
        refuse: A message to refuse all others with.
        tells: `token_ids`, or nothing but text.
        raw: It takes log-probs at temperature 1, whatever the sampling temperature.
        most: Longest prompt and completion together.
        hang: Seconds of silence before an answer.
        past_end: Text that it sends after the think-end marker (a server that knows no stop ids).
        asked: Bodies of completions, in order.
    """

    model: Any
    tokens: Any
    served: tuple = ("served",)
    failures: list = field(default_factory=list)
    refuse: str = ""
    tells: str = "token_ids"
    raw: bool = False
    most: int = 1024
    hang: float = 0.0
    past_end: str = ""
    asked: list = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def thought(self):
        return [body for body in self.asked if self.thinks(body)]

    @property
    def summarised(self):
        return [body for body in self.asked if not self.thinks(body)]

    def thinks(self, body):
        return self.tokens.close_id in body["stop_token_ids"] or bool(body["stop"])


@contextlib.contextmanager
def serving(model, tokens, **behaviour):
    """Yields (url, Behaviour)."""
    told, lock = Behaviour(model, tokens, **behaviour), threading.Lock()
    count, over = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def reply(self, status, body):
            with contextlib.suppress(OSError):  # the client hung up
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

        def do_GET(self):
            assert self.path == "/v1/models"
            cards = [{"id": name, "max_model_len": told.most} for name in told.served]
            self.reply(200, {"data": cards})

        def do_POST(self):
            assert self.path == "/v1/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if told.failures:
                return self.reply(told.failures.pop(0), {"error": {"message": "too busy"}})
            if told.refuse:
                return self.reply(400, {"error": {"message": told.refuse}})
            if len(body["prompt"]) + body["max_tokens"] > told.most:
                message = f"This model's maximum context length is {told.most} tokens."
                return self.reply(400, {"error": {"message": message}})
            with count:
                told.at_once += 1
                told.most_at_once = max(told.most_at_once, told.at_once)
            with lock:
                told.asked.append(body)
                if over.wait(told.hang):
                    return None
                choices = complete(told, body)
            with count:
                told.at_once -= 1
            self.reply(200, {"choices": choices})

    with on_loopback(Handler) as url:
        try:
            yield url, told
        finally:
            over.set()


def complete(told, body):
    tokenizer, thinks = told.tokens.tokenizer, told.thinks(body)
    sampling = Sampling(*(body[n] for n in ("temperature", "top_p", "top_k", "min_p")))
    choices = []
    for number in range(body["n"]):
        torch.manual_seed(body.get("seed", 0) + number)
        with torch.no_grad():
            (made,) = generate_rows(
                told.model, told.tokens, [body["prompt"]], body["max_tokens"], sampling, thinks
            )
        ids = made.tokens
        values = plain_logprobs(told.model, body["prompt"], ids) if told.raw else made.logprobs
        names = [f"token_id:{i}" if told.tells == "token_id:" else tokenizer.decode(i) for i in ids]
        text = told.tokens.decode(ids)
        ended = told.tokens.end(ids) if thinks else ids[-1] in told.tokens.eos_ids
        choice = {"index": number, "text": text, "finish_reason": "stop" if ended else "length"}
        choice["logprobs"] = {"tokens": names, "token_logprobs": list(values)}
        if thinks and ended:
            choice["text"] += told.past_end
        if told.tells == "token_ids":
            choice["token_ids"] = list(ids)
        choices.append(choice)
    return choices[::-1]  # the order is told by `index` alone


def plain_logprobs(model, prompt, ids):
    whole = torch.tensor([[*prompt, *ids]])
    with torch.no_grad():
        logprobs = model(input_ids=whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, whole[0, len(prompt) :, None])[:, 0].tolist()
