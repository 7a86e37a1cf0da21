import hashlib
import http.server
import json
import re
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.progress import Progress

from sdistill.data.catalogue import ENTRIES
from sdistill.data.problem_set import ProblemSet, Row, Source, checksum, obtain, read_rows
from sdistill.settings import ConfigError
from tests.data.files import as_json_text, verl_row, write_lines, write_parquet

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
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
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
        f"python -m sdistill.data.prepare aime25 --data_dir {tmp_path.parent} --from rows.jsonl",
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


# Rows.

ROWS = [verl_row(f"id {i}", f"What is {i}?", str(i)) for i in range(5)]
ROW = Row(
    "some.parquet", 7, {"a": {"b": "[1, 2]"}, "n": 3.0, "half": 0.5, "none": None, "text": "{", "list": []}
)


def read(path):
    return list(read_rows(path, QUIET))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("form", ["parquet", "jsonl", "json"])
def test_nested_columns_and_their_json_text_read_the_same(tmp_path, form, text):
    stored = [as_json_text(row) for row in ROWS] if text else ROWS
    write = write_parquet if form == "parquet" else write_lines
    rows = read(write(tmp_path / f"rows.{form}", stored))
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert [row.text("extra_info", "index") for row in rows] == [f"id {i}" for i in range(5)]
    assert [row.messages("prompt")[0] for row in rows] == [row["prompt"][0] for row in ROWS]


def test_progress_ends_at_the_end_of_the_file(tmp_path):
    progress = Progress(disable=True)
    for path in (write_parquet(tmp_path / "a.parquet", ROWS), write_lines(tmp_path / "b.jsonl", ROWS)):
        list(read_rows(path, progress))
    assert [(task.completed, task.total) for task in progress.tasks] == [
        (5, 5),
        ((tmp_path / "b.jsonl").stat().st_size,) * 2,
    ]


def test_whole_numbers_are_text():
    assert (ROW.text("n"), ROW.text("a", "b", 1)) == ("3", "2")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("b",), "column b is missing; there are a, n, half, none, text, list"),
        (("a", "c"), "column a.c is missing; there are b"),
        (("a", "b", 2), "column a.b.2 is missing; there is [1, 2]"),
        (("half",), "column half must be text, not 0.5"),
        (("none",), "column none must be text, not None"),
        (("none", "x"), "column none.x is missing; there is None"),
        (("a",), "column a must be text, not {'b': '[1, 2]'}"),
        (("text", "x"), "column text is no JSON ("),
    ],
)
def test_what_is_not_there_is_named_by_row_and_column(path, message):
    with pytest.raises(ConfigError, match="^some.parquet, row 7: " + re.escape(message)):
        ROW.text(*path)


@pytest.mark.parametrize("turns", ["[]", [], "{}", 3, [{"role": "user"}], [{"role": "user", "content": " "}]])
def test_what_is_no_conversation_is_refused(turns):
    with pytest.raises(ConfigError, match=r"^f, row 1: column prompt(\.0\.content)? (must be|is missing)"):
        Row("f", 1, {"prompt": turns}).messages("prompt")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    write_parquet(tmp_path / "whole.parquet", ROWS)
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.jsonl").write_text('{"a": 1}\n{"a": ')
    (tmp_path / "list.json").write_text(json.dumps(ROWS))
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    for name, message in {
        "none.parquet": "no such file",
        "empty.jsonl": "has no rows",
        "cut.parquet": "is not a whole parquet file",
        "cut.jsonl": "line 2 is no JSON",
        "list.json": "line 1 must be an object, not [{",
        "rows.csv": "must end in one of .parquet, .jsonl, .json",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(name) + ".*" + re.escape(message)):
            read(tmp_path / name)


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    pq.write_table(pa.table({"problem": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(ConfigError, match="none.parquet has no rows"):
        read(tmp_path / "none.parquet")


def test_text_with_odd_line_ends_stays_in_its_row(tmp_path):
    rows = [{"text": "one\u2028two\x85three\nfour"}, {"text": "five"}]
    assert [row.text("text") for row in read(write_lines(tmp_path / "a.jsonl", rows))] == [
        row["text"] for row in rows
    ]
