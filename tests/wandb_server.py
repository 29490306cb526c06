"""A stand-in for wandb's server: as much of its API as a run and `wandb sync` use, kept in memory."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOOPBACK = "127.0.0.1"
KEY = "0123456789" * 4
"""What wandb takes for a key."""


@dataclass
class StoredRun:
    """What the server has of a run."""

    group: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Lines by their place."""
    summary: str = "{}"
    exit_code: int | None = None

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The history in its order."""
        return [self.history[i] for i in sorted(self.history)]

    def steps(self, key: str) -> list[int]:
        """Our own steps for which there is a value of a key."""
        return [line["step"] for line in self.lines if key in line]


@dataclass
class WandbServer:
    """The server's address, and what it has been sent."""

    url: str
    runs: dict[str, StoredRun] = field(default_factory=dict)
    stopping: bool = False
    """Whether somebody has pressed the button that stops a run."""
    alerts: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What leads wandb here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data that a GraphQL operation gets; none for what isn't known."""
        known = {
            "UpsertBucket": self._upsert,
            "RunResumeStatus": self._resume,
            "CreateRunFiles": self._upload,
            "NotifyScriptableRunAlert": self._alert,
        }
        return known[operation](variables) if operation in known else {}

    def stream(self, run: StoredRun, sent: dict[str, Any]) -> None:
        """Take in what a file stream has sent."""
        for name, chunk in sent.get("files", {}).items():
            if name == "wandb-history.jsonl":
                run.history.update((chunk["offset"] + i, json.loads(line)) for i, line in enumerate(chunk["content"]))
            elif name == "wandb-summary.json":
                run.summary = chunk["content"][-1]
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]

    def _upsert(self, sent: dict[str, Any]) -> dict[str, Any]:
        inserted = sent["name"] not in self.runs
        run = self.runs.setdefault(sent["name"], StoredRun())
        run.group, run.name = sent["groupName"] or run.group, sent["displayName"] or run.name
        if sent["config"]:
            run.config.update(json.loads(sent["config"]))
        bucket = {
            "id": sent["name"],
            "name": sent["name"],
            "displayName": run.name,
            "historyLineCount": len(run.history),
            "project": PROJECT,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _resume(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        if run is None or not run.history:
            return {"model": {**PROJECT, "bucket": None}}
        bucket = {
            "id": asked["name"],
            "name": asked["name"],
            "displayName": run.name,
            "config": json.dumps(run.config),
            "summaryMetrics": run.summary,
            "historyTail": json.dumps([json.dumps(run.lines[-1])]),
            "historyLineCount": len(run.history),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**PROJECT, "bucket": bucket}}

    def _upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def _alert(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append(sent)
        return {"notifyScriptableRunAlert": {"success": True}}


PROJECT: dict[str, Any] = {"id": "1", "name": "p", "entity": {"id": "1", "name": "us"}}


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server without runs, in threads of this process."""
    http = _Http((LOOPBACK, 0), _Handler)
    http.wandb = WandbServer(f"http://{LOOPBACK}:{http.server_address[1]}")
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield http.wandb
    finally:
        http.shutdown()
        http.server_close()


class _Http(ThreadingHTTPServer):
    wandb: WandbServer
    lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients are killed in the middle of a request."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_POST(self) -> None:
        body = self._body()
        with self.server.lock:
            self._reply(self._answer(json.loads(body)) if body else {})

    def do_PUT(self) -> None:
        self.server.wandb.files[self.path.removeprefix("/upload/")] = self._body()
        self._reply({})

    def _answer(self, sent: dict[str, Any]) -> dict[str, Any]:
        if self.path.endswith("/graphql"):
            operation = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
            return {"data": self.server.wandb.answer(operation[1] if operation else "", sent.get("variables") or {})}
        self.server.wandb.stream(self.server.wandb.runs[self.path.split("/")[-2]], sent)
        return {"exitcode": None, "limits": {}, "stopped": self.server.wandb.stopping}

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
