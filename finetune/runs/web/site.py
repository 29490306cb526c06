"""What there is to see, by its path."""

from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote

from finetune.errors import UserError
from finetune.runs.view.overview import Overview, overview, overviews, pictures, runs_in
from finetune.runs.web.pages import STYLE, closed_page, run_page, runs_page
from finetune.runs.web.prometheus import KIND, exposed

HTML, PLAIN, CSS = (f"text/{name}; charset=utf-8" for name in ("html", "plain", "css"))
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
ILL = ("stale", "failed")
"""What /healthz answers with 503; a run that waits for data or was asked to stop is as it should be."""


@dataclass(frozen=True)
class Answer:
    """An answer to a request."""

    status: HTTPStatus
    kind: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def text(cls, status: HTTPStatus, sentence: str, **headers: str) -> "Answer":
        """A sentence; underscores in the names of headers stand for hyphens."""
        return cls(status, PLAIN, f"{sentence}\n".encode(), headers)

    @classmethod
    def page(cls, html: str, status: HTTPStatus = HTTPStatus.OK, **headers: str) -> "Answer":
        """A page."""
        return cls(status, HTML, html.encode(), headers)


class NothingHere(Exception):
    """There is nothing at a path."""


class Site:
    """One run, or all that lie in a folder. A path is only ever compared with the names of what is there."""

    def __init__(self, folder: Path) -> None:
        """What is in a folder, which may be a run's own. Raises UserError where it cannot be read."""
        self._folder = folder
        self._alone = (folder / "status.json").exists()
        self._runs()

    def answer(self, path: str, *, told: bool) -> Answer:
        """What is at a path.

        Args:
            told: whether who asks may know more than whether all is well.
        """
        try:
            return self._answer([unquote(part) for part in path.split("/")[1:]], told=told)
        except NothingHere:
            return Answer.text(HTTPStatus.NOT_FOUND, "there is nothing here")
        except (UserError, OSError) as error:
            return Answer.text(HTTPStatus.SERVICE_UNAVAILABLE, str(error) if told else "unreadable")

    def closed(self, path: str) -> Answer:
        """What is shown at a path to those without the token."""
        return Answer.page(
            closed_page("../" * (path.count("/") - 1)), HTTPStatus.UNAUTHORIZED, WWW_Authenticate="Bearer"
        )

    def _answer(self, parts: list[str], *, told: bool) -> Answer:
        """Raises NothingHere."""
        match parts:
            case [""]:
                return _page(self._folder) if self._alone else Answer.page(runs_page(overviews(self._folder)))
            case ["style.css"]:
                return Answer(HTTPStatus.OK, CSS, STYLE.read_bytes(), {"Cache-Control": "max-age=3600"})
            case ["metrics"]:
                return Answer(HTTPStatus.OK, KIND, exposed(self._readable()))
            case ["healthz"]:
                return _health(self._latest(), told=told)
            case ["samples", name] if self._alone:
                return _picture(self._folder, name)
            case ["runs", run, ""]:
                return _page(self._run(run), "../../")
            case ["runs", run, "healthz"]:
                return _health(overview(self._run(run)), told=told)
            case ["runs", run, "samples", name]:
                return _picture(self._run(run), name)
        raise NothingHere

    def _runs(self) -> dict[str, Path]:
        return {self._folder.resolve().name: self._folder} if self._alone else runs_in(self._folder)

    def _run(self, name: str) -> Path:
        runs = self._runs()
        if name not in runs:
            raise NothingHere
        return runs[name]

    def _readable(self) -> dict[str, Overview]:
        """The runs by the names of their folders, without those that cannot be read now."""
        if self._alone:
            return {self._folder.resolve().name: overview(self._folder)}
        return {name: look for name, look in overviews(self._folder).items() if isinstance(look, Overview)}

    def _latest(self) -> Overview:
        """The run that has given the last sign of life. Raises UserError where there is none."""
        looks = self._readable()
        if not looks:
            raise UserError(f"{self._folder} holds no run: start one, or give another folder")
        return min(looks.values(), key=lambda look: look.heartbeat_age_s)


def _page(run: Path, root: str = "") -> Answer:
    return Answer.page(run_page(overview(run), pictures(run), root))


def _health(look: Overview, *, told: bool) -> Answer:
    ill = look.health in ILL
    word = look.health if ill else "ok"
    sentence = f"{look.name}: {look.sentence}" if told else word
    return Answer.text(HTTPStatus.SERVICE_UNAVAILABLE if ill else HTTPStatus.OK, sentence)


def _picture(run: Path, name: str) -> Answer:
    if name not in pictures(run):
        raise NothingHere
    path = run / "samples" / name
    kept = {"Cache-Control": "private, max-age=3600"}
    return Answer(HTTPStatus.OK, PICTURES[path.suffix.lower()], path.read_bytes(), kept)
