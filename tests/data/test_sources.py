import hashlib
import http.server
import threading

import pytest
from rich.progress import Progress

from sdistill.data.catalogue import ENTRIES
from sdistill.data.problem_set import ProblemSet
from sdistill.data.sources import Source, checksum, obtain
from sdistill.settings import ConfigError

CONTENT = b"some rows\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUIET = Progress(disable=True)


class Hub(http.server.BaseHTTPRequestHandler):
    """Stands in for the public file server."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if "absent" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100] if "cut" in self.path else CONTENT)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()
        thread.join()


def test_a_file_is_downloaded_once_and_verified(hub, tmp_path):
    source = Source(f"{hub.url}/data/rows.jsonl", SHA256, "MIT")
    progress = Progress(disable=True)
    for _ in range(2):
        path = obtain(source, tmp_path / "new", "aime25", progress)
        assert path == tmp_path / "new" / "rows.jsonl" and path.read_bytes() == CONTENT
    assert hub.asked == ["/data/rows.jsonl"]
    assert [(task.completed, task.total) for task in progress.tasks] == [(len(CONTENT), len(CONTENT))]
    assert checksum(path) == SHA256 and sorted(path.parent.iterdir()) == [path]


def test_a_file_that_somebody_put_there_is_used(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(CONTENT)
    source = Source("http://127.0.0.1:1/rows.jsonl", SHA256, "MIT")
    assert obtain(source, tmp_path, "aime25", QUIET).read_bytes() == CONTENT


def test_another_file_than_the_pinned_one_is_refused(hub, tmp_path):
    source = Source(f"{hub.url}/rows.jsonl", "0" * 64, "MIT")
    with pytest.raises(ConfigError, match=f"rows.jsonl has SHA-256 {SHA256}, and the pinned file 0000"):
        obtain(source, tmp_path, "aime25", QUIET)


def test_a_file_nobody_published_a_checksum_of_is_taken_as_it_is(hub, tmp_path):
    assert obtain(Source(f"{hub.url}/rows.jsonl", None, "MIT"), tmp_path, "x", QUIET).read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["absent/rows.jsonl", "cut/rows.jsonl"])
def test_what_cannot_be_downloaded_leaves_nothing_behind(hub, tmp_path, path):
    with pytest.raises(ConfigError, match=f"{hub.url}/{path} cannot be downloaded"):
        obtain(Source(f"{hub.url}/{path}", SHA256, "MIT"), tmp_path, "aime25", QUIET)
    assert not (tmp_path / "rows.jsonl").exists()


def test_without_a_network_the_error_says_what_to_put_where(tmp_path):
    source = Source("http://127.0.0.1:1/rows.jsonl", SHA256, "MIT")
    with pytest.raises(ConfigError, match="cannot be downloaded") as error:
        obtain(source, tmp_path / "there", "aime25", QUIET)
    for part in (
        source.url,
        f"put it at {tmp_path}/there/rows.jsonl",
        "python -m sdistill.data.prepare aime25 --from rows.jsonl",
    ):
        assert part in str(error.value)


def test_public_files_are_pinned():
    builders = {e.builder for e in ENTRIES.values() if issubclass(e.builder, ProblemSet)}
    sources = [source for builder in builders for source in builder.SOURCES]
    assert len(sources) == len({source.url for source in sources})
    for source in sources:
        assert source.url.startswith("https://") and "/main/" not in source.url
        revision = next(part for part in source.url.split("/") if len(part) == 40)
        assert int(revision, 16) and source.licence
        assert source.sha256 is None or len(source.sha256) == 64
