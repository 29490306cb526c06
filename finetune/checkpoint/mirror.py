"""Copies of checkpoints behind a URL.

A copy's manifest is put last, when all of its files have been read back and hashed, and removed first. So what has a
manifest is whole, and half a copy is never taken for one.
"""

import hashlib
import tempfile
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from finetune.checkpoint.files import disk_faults, hashing
from finetune.checkpoint.manifest import Checkpoint, parse_manifest
from finetune.checkpoint.names import MANIFEST, NAME
from finetune.checkpoint.search import DAMAGED, Report
from finetune.checkpoint.writer import UNFINISHED, commit, discard
from finetune.data.outage import Patience
from finetune.data.remote import Remote, is_remote
from finetune.errors import UserError
from finetune.redact import redacted

PIECE_BYTES = 64 * 2**20
TIMEOUT_S = 60.0


class Corrupt(OSError):
    """A copy is not what its manifest says."""


class Mirror:
    """The copies of a run's checkpoints. Faults of the network are tried again for a while, then raised as OSError."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        """Nothing is asked for yet.

        Args:
            url: of the folder, or its path.
        """
        self.url = url.rstrip("/") if is_remote(url) else f"file://{Path(url).expanduser().absolute()}"
        self._remote = Remote(TIMEOUT_S)
        self._patience = patience or Patience()

    def check(self) -> None:
        """Raise UserError where nothing can be written there."""
        probe = f"{self.url}/probe"
        try:
            with tempfile.NamedTemporaryFile() as empty:
                self._put(Path(empty.name), probe)
            self._remote.remove(probe)
        except OSError as error:
            raise UserError(
                f"checkpoint.upload: {redacted(self.url)} cannot be written ({redacted(str(error))}): see to the "
                "address and the rights, or set checkpoint.upload=null"
            ) from error

    def manifests(self) -> dict[str, str]:
        """The text of every copy's manifest by the checkpoint's name, oldest first."""
        urls = self._patience.for_a_while(lambda: self._remote.find(f"{self.url}/step-*/{MANIFEST}"))
        names = sorted((url.split("/")[-2] for url in urls), key=lambda name: (len(name), name))
        return {name: self._text(f"{self.url}/{name}/{MANIFEST}") for name in names if NAME.fullmatch(name)}

    def upload(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint, and read it back. What lies there of an attempt before, and is right, stays."""
        url = f"{self.url}/{checkpoint.folder.name}"
        manifest = f"{url}/{MANIFEST}"
        if self._remote.find(manifest):  # of another edition of the same step
            self._remote.remove(manifest)
        for name, expected in checkpoint.files.items():
            if self._digest(f"{url}/{name}", expected["size"]) != expected["sha256"]:
                self._put(checkpoint.folder / name, f"{url}/{name}")
                if self._digest(f"{url}/{name}", expected["size"]) != expected["sha256"]:
                    raise Corrupt(f"{url}/{name} is not what was written to it")
        self._put(checkpoint.folder / MANIFEST, manifest)
        if self._text(manifest) != (checkpoint.folder / MANIFEST).read_text(encoding="utf-8"):
            raise Corrupt(f"{manifest} is not what was written to it")

    def fetch(self, name: str, text: str, folder: Path) -> None:
        """Copy a checkpoint from there to the folder of the run's, where it takes its name when it is whole.

        Args:
            text: its manifest.

        Raises:
            ValueError: the manifest is not that of a checkpoint of this name.
            Corrupt: the copy is not what the manifest says.
            UserError: there is no room for it, or the folder cannot be written.
        """
        final = folder / name
        checkpoint = parse_manifest(text, final)
        temporary = final.with_suffix(UNFINISHED)
        try:
            with disk_faults(folder, f"the copy of {redacted(self.url)}/{name}", checkpoint.size):
                temporary.mkdir(parents=True)
                for file, expected in checkpoint.files.items():
                    self._fetch_file(f"{self.url}/{name}/{file}", temporary / file, expected)
                commit(temporary, final, text)
        finally:
            discard(temporary)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove all other checkpoints, whole or not."""
        found = self._patience.for_a_while(lambda: self._remote.find(f"{self.url}/step-*"))
        for url in (url.rstrip("/") for url in found):
            name = url.rpartition("/")[2]
            if NAME.fullmatch(name) and name not in names:
                if self._remote.find(f"{url}/{MANIFEST}"):
                    self._remote.remove(f"{url}/{MANIFEST}")
                self._remote.remove(url)

    def _put(self, path: Path, url: str) -> None:
        self._patience.for_a_while(lambda: self._remote.put(path, url))

    def _text(self, url: str) -> str:
        read = self._patience.for_a_while(lambda: self._remote.read(url, 0, self._remote.size(url)))
        return read.decode(errors="replace")

    def _digest(self, url: str, size: int) -> str | None:
        """The SHA-256 of a file there; None where there is none of this size."""
        try:
            if self._patience.for_a_while(lambda: self._remote.size(url)) != size:
                return None
        except FileNotFoundError:
            return None
        digest = hashlib.sha256()
        for piece in self._pieces(url, size):
            digest.update(piece)
        return digest.hexdigest()

    def _fetch_file(self, url: str, path: Path, expected: dict[str, object]) -> None:
        size = int(str(expected["size"]))
        if self._patience.for_a_while(lambda: self._remote.size(url)) != size:
            raise Corrupt(f"{url} has another size than was written")
        with hashing(path) as file:
            for piece in self._pieces(url, size):
                file.write(piece)
        if file.facts != expected:
            raise Corrupt(f"{url} is not as it was written")

    def _pieces(self, url: str, size: int) -> Iterator[bytes]:
        for offset in range(0, size, PIECE_BYTES):
            count = min(PIECE_BYTES, size - offset)
            yield self._patience.for_a_while(partial(self._remote.read, url, offset, count))


def fetch_newest(mirror: Mirror, folder: Path, beyond: int | None, report: Report) -> str | None:
    """Fetch the newest copy that is whole; its name, or None where there is no newer one.

    Args:
        folder: of the run's checkpoints.
        beyond: the step of what the run has itself; None where it has nothing.
        report: told of what is fetched, and of what is passed over.

    Raises:
        UserError: the run has nothing itself, and the copies cannot be read or are all damaged.
    """
    url, damaged = redacted(mirror.url), dict[str, str]()
    try:
        copies = mirror.manifests()
        for name in reversed(copies):
            if beyond is not None and int(name.removeprefix("step-")) <= beyond:
                return None
            try:
                mirror.fetch(name, copies[name], folder)
            except (ValueError, Corrupt) as error:
                damaged[name] = redacted(str(error))
                report(DAMAGED, f"{url}/{name}: {damaged[name]}")
                continue
            report("fetched checkpoint", f"{name} comes from {url}")
            return name
    except OSError as error:
        told = f"{url} cannot be read ({redacted(str(error))})"
        if beyond is not None:
            report("upload failed", told)
            return None
        raise UserError(
            f"{told}, where checkpoints of this run may lie: see to it and start again, or begin anew with "
            "checkpoint.upload=null"
        ) from error
    if damaged and beyond is None:
        told = "; ".join(f"{name}: {wrong}" for name, wrong in damaged.items())
        raise UserError(f"no copy in {url} can be used ({told}): start another run with another run.name")
    return None
