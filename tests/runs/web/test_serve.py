"""The server, asked over HTTP."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from finetune.errors import UserError
from finetune.monitor.files import append_lines
from finetune.runs.__main__ import app
from finetune.runs.web import server as serving
from finetune.runs.web.access import Access
from finetune.runs.web.server import Server
from finetune.runs.web.site import Site
from tests.runs.pretend import pretend_run, pretend_samples

TOKEN = "correct-horse-battery"
HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=y>"


class Got(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Asked:
    """A server on a free port, and a client that does nothing by itself."""

    def __init__(self, folder: Path, host: str, token: str | None, names: list[str]) -> None:
        self.server = Server(host, 0, Site(folder), Access.to(host, token, names))
        self.port = self.server.server_port

    def get(self, path: str, method: str = "GET", **headers: str) -> Got:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host="Host" in named, skip_accept_encoding=True)
        for name, value in named.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return Got(response.status, dict(response.getheaders()), response.read())


@contextmanager
def asked(
    folder: Path, host: str = "127.0.0.1", token: str | None = None, names: list[str] | None = None
) -> Iterator[Asked]:
    one = Asked(folder, host, token, names or [])
    thread = threading.Thread(target=one.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield one
    finally:
        one.server.shutdown()
        thread.join()
        one.server.server_close()


@pytest.fixture
def ask() -> Iterator[Callable[..., Asked]]:
    with ExitStack() as stack:
        yield lambda *args, **more: stack.enter_context(asked(*args, **more))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = pretend_run(tmp_path_factory.mktemp("runs") / "fox", 1200, heartbeat=time.time() + 3600)
    pretend_samples(folder, 1000)
    return folder


def test_a_page_shows_the_run_without_scripts_or_anything_from_outside(run: Path, ask: Callable[..., Asked]) -> None:
    page = ask(run).get("/")
    assert page.status == 200
    for text in (
        "fox",
        "healthy",
        "1,200",
        "tracker failed",
        "samples/step-00001000.png",
        "<svg",
        "width=device-width",
    ):
        assert text in page.text
    assert "<script" not in page.text
    links = re.findall(r"(?:src|href|action)=\"([^\"]*)\"", page.text)
    assert links
    assert not [link for link in links if ":" in link or link.startswith("/")]
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert " style=" not in page.text  # which the policy would not let through


@pytest.mark.parametrize(
    "text", [None, "", "{", '{"epoch": {}, "loss": "x", "lr": 1, "step": 5, "loss_by_decile": 3, "images_per_s": []}\n']
)
def test_whatever_a_run_has_written_there_is_a_page(
    tmp_path: Path, ask: Callable[..., Asked], text: str | None
) -> None:
    run = pretend_run(tmp_path / "run", 60)
    for path in run.glob("*.jsonl"):
        path.unlink()
        if text is not None:
            path.write_text(text)
    one = ask(run)
    assert [one.get(path).status for path in ("/", "/metrics", "/healthz")] == [200, 200, 200]
    assert "healthy" in one.get("/").text


def test_what_the_page_links_to_is_there(run: Path, ask: Callable[..., Asked]) -> None:
    one = ask(run.parent)
    page = one.get("/runs/fox/").text
    root = one.get("/").text
    assert 'href="runs/fox/"' in root
    assert 'href="../../style.css"' in page
    assert one.get("/style.css").headers["Content-Type"].startswith("text/css")
    picture = one.get("/runs/fox/samples/step-00001000.png")
    assert picture.headers["Content-Type"] == "image/png"
    assert picture.body == (run / "samples/step-00001000.png").read_bytes()


def test_hostile_text_is_escaped(tmp_path: Path, ask: Callable[..., Asked]) -> None:
    run = pretend_run(tmp_path / "run", 60, name=HOSTILE, host=HOSTILE, state="failed", reason=HOSTILE)
    append_lines(run / "events.jsonl", [{"kind": HOSTILE, "reason": HOSTILE, HOSTILE: [HOSTILE]}])
    (run / "samples").mkdir()
    (run / "samples" / "step-00000050 \"onerror='x' <script>.png").write_bytes(b"")
    line = {"step": 61, "loss": 0.1, "lr": {HOSTILE: 1e-5}}
    append_lines(run / "metrics.jsonl", [line])
    append_lines(run / "intervals.jsonl", [{"step": 60, "buckets": {HOSTILE: 3}, "bad_samples": {HOSTILE: 1}}])
    one = ask(tmp_path)
    pages = [one.get("/runs/run/").text, one.get("/").text]
    for page in pages:
        assert "<script" not in page
        assert "<img src=x" not in page
        assert "&lt;script&gt;" in page
    assert 'png" onerror' not in pages[0]
    assert list(text_string_to_metric_families(one.get("/metrics").text))


def test_health_follows_the_heartbeat(tmp_path: Path, ask: Callable[..., Asked]) -> None:
    one = ask(pretend_run(tmp_path / "run", 60))
    assert one.get("/healthz").status == 200
    pretend_run(tmp_path / "run", 60, heartbeat=time.time() - 1000)
    stale = one.get("/healthz")
    assert stale.status == 503
    assert "no sign of life" in stale.text
    for state, status in (("failed", 503), ("preempted", 200), ("finished", 200), ("stopped", 200)):
        pretend_run(tmp_path / "run", 60, state=state)
        assert one.get("/healthz").status == status, state
    pretend_run(tmp_path / "run", 60, state="paused")
    assert "waits for data" in one.get("/healthz").text
    (tmp_path / "run" / "status.json").write_text("{")
    assert one.get("/healthz").status == 503
    assert one.get("/").status == 503


def test_the_health_of_a_folder_is_that_of_its_latest_run(tmp_path: Path, ask: Callable[..., Asked]) -> None:
    one = ask(tmp_path)
    assert one.get("/healthz").status == 503
    pretend_run(tmp_path / "old", 60, heartbeat=time.time() - 1e6)
    pretend_run(tmp_path / "new", 60)
    assert one.get("/healthz").status == 200
    assert [one.get(f"/runs/{name}/healthz").status for name in ("new", "old", "none")] == [200, 503, 404]


def test_prometheus_reads_every_figure(run: Path, ask: Callable[..., Asked]) -> None:
    pretend_run(run.parent / "second", 300, name="fox")
    got = ask(run.parent).get("/metrics")
    assert got.headers["Content-Type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(got.text)}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    interval = json.loads((run / "intervals.jsonl").read_text().splitlines()[-1])

    def values(name: str, run: str = "fox", **labels: str) -> list[float]:
        found = [s for s in families[name].samples if s.labels["run"] == run and labels.items() <= s.labels.items()]
        return [sample.value for sample in found]

    assert values("longhaul_step") == [1200]
    assert values("longhaul_step", "second") == [300]
    assert values("longhaul_loss") == [last["loss"]]
    assert values("longhaul_learning_rate", group="text") == [last["lr"]["text"]]
    assert len(values("longhaul_loss_by_decile")) == 10
    assert values("longhaul_gpu_memory_peak_bytes") == [interval["gpu_memory_peak_gib"] * 2**30]
    assert values("longhaul_bad_samples", reason="too many pixels") == [4]
    assert families["longhaul_bad_samples"].type == "counter"
    assert values("longhaul_health", health="healthy") == [1]
    assert sum(values("longhaul_health")) == 1


@pytest.mark.parametrize(
    "path",
    [
        *("/samples/../status.json", "/samples/..%2fstatus.json", "/samples/%2e%2e/status.json", "/../fox/status.json"),
        *("/samples//etc/passwd", "/samples/%2fetc%2fpasswd", "/samples/", "/samples/none.png", "/status.json"),
        *(
            "/runs/../",
            "/runs/..%2f..%2fetc/",
            "/runs/%2e%2e/samples/x.png",
            "/samples/step-00000009.png",
            "/config.yaml",
        ),
        *("/samples/step-00000008.png%00.txt", "/..%5c..%5c", "/" + "a" * 5000),
    ],
)
def test_nothing_but_what_is_listed_can_be_had(run: Path, ask: Callable[..., Asked], path: str) -> None:
    link = run / "samples" / "step-00000009.png"
    if not link.is_symlink():
        link.symlink_to("/etc/passwd")
    assert ask(run).get(path).status == 404


@pytest.mark.parametrize("path", ["http://[/", "http://[]/?token=x", "http://[x]/"])
def test_an_address_that_is_none_is_an_answer_too(
    run: Path, ask: Callable[..., Asked], path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", ask(run).port)) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        assert client.makefile("rb").readline().startswith(b"HTTP/1.0 400")
    assert capfd.readouterr().err == ""


def test_a_crowd_waits_until_it_is_taken(run: Path) -> None:
    with serving.Server("127.0.0.1", 0, Site(run), Access.to("127.0.0.1", None, [])) as server, ExitStack() as stack:
        for _ in range(100):  # whom nobody serves yet
            stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=0.5))


def test_only_get_and_head_are_answered(run: Path, ask: Callable[..., Asked]) -> None:
    one = ask(run)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"):
        got = one.get("/", method)
        assert (got.status, got.headers["Allow"]) == (405, "GET, HEAD")
    head, page = one.get("/healthz", "HEAD"), one.get("/healthz")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["Content-Length"]) == pytest.approx(len(page.body), abs=4)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost", 200), ("127.0.0.1:99", 200), ("LOCALHOST:8420", 200), ("[::1]:80", 200), ("box.tail.net", 200)),
        *(("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example:80", 421), ("", 421)),
        *(("10.0.0.7", 421), ("evil.example:127.0.0.1", 421)),
    ],
)
def test_a_name_that_was_led_here_is_refused(run: Path, ask: Callable[..., Asked], host: str, status: int) -> None:
    assert ask(run, names=["box.tail.net"]).get("/", Host=host).status == status


def test_on_all_addresses_any_address_is_known_and_names_are_not(run: Path, ask: Callable[..., Asked]) -> None:
    one = ask(run, "0.0.0.0", TOKEN, ["box"])
    hosts = ("10.0.0.7:8420", "[fd00::7]:8420", "box:8420", "localhost", "evil.example")
    assert [one.get("/healthz", Host=host).status for host in hosts] == [200, 200, 200, 200, 421]
    assert not Access.to("", TOKEN, []).knows(None)


def test_without_the_token_only_whether_all_is_well_is_told(run: Path, ask: Callable[..., Asked]) -> None:
    one = ask(run.parent, token=TOKEN)
    for path in ("/", "/metrics", "/runs/fox/", "/runs/fox/healthz", "/runs/fox/samples/step-00001000.png", "/none"):
        got = one.get(path)
        assert got.status == 401, path
        assert got.headers["WWW-Authenticate"] == "Bearer"
        assert "foxbox" not in got.text
    assert one.get("/healthz").body == b"ok\n"
    assert "fox" in one.get("/healthz", Authorization=f"Bearer {TOKEN}").text
    for wrong in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer ", "Bearer", "Bearer ü", f"Bearer {TOKEN[:-1]}"):
        assert one.get("/", Authorization=wrong).status == 401
    for name, value in (("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"bearer {TOKEN}")):
        assert one.get("/", **{name: value}).status == 200


def test_a_stale_run_tells_strangers_no_more_than_that(tmp_path: Path, ask: Callable[..., Asked]) -> None:
    run = pretend_run(tmp_path / "fox", 60, heartbeat=time.time() - 1e5)
    got = ask(run, token=TOKEN).get("/healthz")
    assert (got.status, got.body) == (503, b"stale\n")
    (run / "status.json").write_text("{")
    assert ask(run, token=TOKEN).get("/healthz").body == b"unreadable\n"


def test_a_token_in_the_address_is_traded_for_a_cookie(run: Path, ask: Callable[..., Asked]) -> None:
    one = ask(run.parent, token=TOKEN)
    traded = one.get(f"/runs/fox/?token={TOKEN}")
    assert (traded.status, traded.headers["Location"]) == (303, "./")
    cookie = traded.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    sent = cookie.split(";")[0]
    assert one.get("/runs/fox/", Cookie=sent).status == 200
    assert one.get("/runs/fox/", Cookie=f"other=1; {sent}").status == 200
    for wrong in (sent[:-1], sent + "0", f"longhaul={TOKEN}", "", "=;=", sent.upper()):
        assert one.get("/runs/fox/", Cookie=wrong).status == 401, wrong
    assert one.get("/runs/fox/?token=wrong").status == 401
    assert "Set-Cookie" not in one.get("/runs/fox/?token=wrong").headers
    assert ask(run.parent, token=TOKEN + "2").get("/runs/fox/", Cookie=sent).status == 401


def test_the_redirect_never_leaves_the_server(run: Path, ask: Callable[..., Asked]) -> None:
    one = ask(run, token=TOKEN)
    for path in ("//evil.example/", "/%2f%2fevil.example", "/\\evil.example/x", "//evil.example"):
        assert one.get(f"{path}?token={TOKEN}").headers["Location"].startswith("./")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.7", "box.lan"])
def test_elsewhere_than_on_loopback_a_token_is_demanded(host: str) -> None:
    for token in (None, "", "short"):
        with pytest.raises(UserError, match=r"LONGHAUL_TOKEN|at least 16"):
            Access.to(host, token, [])
    assert Access.to(host, TOKEN, []).token == TOKEN


def test_slow_clients_are_left_and_others_served(
    run: Path, ask: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SLOWEST_S", 0.5)
    one = ask(run)
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", one.port))) for _ in range(20)]
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nHo")
        assert one.get("/").status == 200
        for connection in slow:  # one letter now and then does not keep it
            connection.settimeout(30)
            with pytest.raises((ConnectionError, EOFError)):
                dripped(connection)
        assert one.get("/").status == 200


def dripped(connection: socket.socket) -> None:
    """Send a letter now and then. Raises EOFError or ConnectionError once the other side has closed."""
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)
        connection.setblocking(False)
        try:
            if connection.recv(100) == b"":
                raise EOFError
        except BlockingIOError:
            pass
        finally:
            connection.settimeout(30)


def test_too_many_connections_at_once_are_closed(run: Path, ask: Callable[..., Asked]) -> None:
    one = ask(run)
    with ExitStack() as stack:
        for _ in range(serving.CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", one.port)))
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            one.get("/")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until the server has noticed that they are gone
        try:
            assert one.get("/healthz").status == 200
            return
        except (ConnectionError, http.client.HTTPException):
            time.sleep(0.05)
    raise AssertionError("it has not recovered")


def test_the_command_prints_its_address_and_logs_nothing(run: Path) -> None:
    command = [sys.executable, "-m", "finetune.runs", "serve", str(run), "--port", "0"]
    environment = {**os.environ, "LONGHAUL_TOKEN": TOKEN}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rstrip("/").rpartition(":")[2])
        for path in ("/", f"/?token={TOKEN}", "/none"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", path)
            connection.getresponse().read()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)
        assert said == ("", "")
        assert process.returncode == 130


def test_a_port_that_is_taken_is_a_sentence(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(app, ["serve", str(run), "--port", str(taken.getsockname()[1])])
        assert isinstance(result.exception, UserError)
        assert "give another port or host" in str(result.exception)
    assert isinstance(CliRunner().invoke(app, ["serve", str(run), "--host", "0.0.0.0"]).exception, UserError)
    assert isinstance(CliRunner().invoke(app, ["serve", str(run / "none")]).exception, UserError)
