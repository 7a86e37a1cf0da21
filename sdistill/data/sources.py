"""The public files that data sets are made of, and how they come here."""

import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from sdistill.settings import ConfigError
from sdistill.storage import finish

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60  # seconds without an answer, after which there is no network


@dataclass(frozen=True)
class Source:
    """A public file, pinned.

    Attributes:
      url: Where it is, at a fixed revision.
      sha256: Of its content; None where it is not known to us: it is then recorded, not verified.
      licence: As its publisher declares it; `not declared` where there is none.
    """

    url: str
    sha256: str | None
    licence: str

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rpartition("/")[2]


def on_the_hub(repository: str, revision: str, path: str, sha256: str | None, licence: str) -> Source:
    """A file of a data set repository of Hugging Face's."""
    return Source(f"https://huggingface.co/datasets/{repository}/resolve/{revision}/{path}", sha256, licence)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def obtain(source: Source, folder: Path, name: str, progress: Progress) -> Path:
    """The file of a source: the one in `folder` if it is there, else downloaded to it.

    Args:
      source: What to get.
      folder: Where downloads of the data set are kept.
      name: Of the data set, for messages.
      progress: Shows the download.

    Raises:
      ConfigError: if it cannot be downloaded, with the ways to do without; or if it is not the pinned file.
    """
    path = folder / source.file
    if not path.exists():
        try:
            _download(source.url, path, progress)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ConfigError(
                f"{name} is not prepared, and {source.url} cannot be downloaded ({error}). Get the file on "
                f"another machine and put it at {path}, or give it by hand:\n"
                f"  python -m sdistill.data.prepare {name} --from {source.file}"
            ) from error
    found = checksum(path)
    if source.sha256 not in (None, found):
        raise ConfigError(
            f"{path} has SHA-256 {found}, and the pinned file {source.sha256}; remove it to download it "
            f"again, or use it as it is with: python -m sdistill.data.prepare {name} --from {path}"
        )
    return path


def _download(url: str, path: Path, progress: Progress) -> None:
    """Downloads a file, which has its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, open(temporary, "wb") as file:
        size = response.headers["Content-Length"]
        bar = progress.add_task(f"{path.name} (download)", total=int(size) if size else None)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            progress.advance(bar, len(chunk))
        if size and file.tell() != int(size):
            raise ConnectionError(f"{file.tell()} of {size} bytes came")
    finish(temporary, path)
