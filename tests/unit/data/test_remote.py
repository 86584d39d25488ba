"""Files behind a web server, with real sockets: only what is needed is fetched, and a failing server is asked again."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ted_ds.config.data import Source
from ted_ds.data.reading import lines, listing
from ted_ds.data.reading.described import MOST_ENDS, with_ends
from ted_ds.data.reading.listing import Listing, list_source, read_extent, read_in_order
from ted_ds.data.reading.records import START, BadRecord, Item
from ted_ds.data.sources import locate
from ted_ds.errors import DataError

pytestmark = pytest.mark.lengthy

LARGE = 2**24


class Server(ThreadingHTTPServer):
    """Serves files that tests put into it, and remembers what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.fetched: list[tuple[int, int]] = []
        """Of each successful GET: the first byte and the one after the last."""
        self.failures_left = 0
        self.knows_ranges = True

    def put(self, name: str, content: bytes) -> str:
        self.files[f"/{name}"] = content
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        content = self.server.files.get(self.path.partition("?")[0])
        if content is None:
            self.send_error(404)
            return
        if with_body and self.server.failures_left:
            self.server.failures_left -= 1
            self.send_error(500)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin, end = 0, len(content)
        if wanted and self.server.knows_ranges:
            begin, end = int(wanted[1]), min(int(wanted[2] or end) + 1, end)
            if begin >= end:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.knows_ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if with_body:
            self.server.fetched.append((begin, end))
            self.wfile.write(content[begin:end])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(listing, "REMOTE_WAIT_S", 0.01)
    one = Server()
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


def json_lines(count: int) -> bytes:
    return "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(count)).encode()


def texts_of(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def listed(url: str, **options: Any) -> Listing:
    return list_source(Source(path=url, **options))


def read(source: Listing, *, extent_bytes: int = 2**18) -> list[Item]:
    extents = source.extents(extent_bytes)
    return [
        item
        for index in range(len(extents))
        for item in read_extent(source, extents[index], START, ["text"], max_bytes=LARGE)
    ]


def test_a_url_is_listed_without_fetching_the_file(server: Server) -> None:
    content = json_lines(5000)
    for name in ("a.jsonl", "a.csv", "a.txt", "a.jsonl.gz"):
        source = listed(server.put(name, content))
        assert [(file.url, file.size) for file in source.files] == [(server.put(name, content), len(content))]
    assert server.fetched == []
    listed(server.put("a.json", content))  # a list?
    assert server.fetched == [(0, 64)]


def test_of_many_files_the_ends_of_some_are_fetched() -> None:
    assert [*with_ends(3)] == [0, 1, 2]
    some = with_ends(10_000)
    assert (len(some), some[0], some[-1]) == (MOST_ENDS, 0, 9_999)
    assert max(after - before for before, after in itertools.pairwise(some)) <= 40


def test_an_extent_fetches_itself_and_the_rest_of_its_last_line(server: Server) -> None:
    content = json_lines(5000)
    source = listed(server.put("a.jsonl", content))
    extents = source.extents(10_000)
    rest_bytes = lines.CHUNK_BYTES // 16
    found = []
    for index in range(len(extents)):
        extent = extents[index]
        server.fetched.clear()
        found += read_extent(source, extent, START, ["text"], max_bytes=LARGE)
        own = (max(extent.start - 1, 0), extent.end)
        last_line_goes_on = content[extent.end - 1 : extent.end] != b"\n"
        rest = [(extent.end, min(extent.end + rest_bytes, len(content)))] if last_line_goes_on else []
        assert server.fetched == [own, *rest]
    assert [item.row["text"] for item in found] == texts_of(5000)


def test_from_a_record_on_nothing_before_it_is_fetched(server: Server) -> None:
    source = listed(server.put("a.jsonl", json_lines(5000)))
    items = read(source)
    server.fetched.clear()
    rest = list(read_extent(source, source.extents()[0], items[4000].start, ["text"], max_bytes=LARGE))
    assert rest == items[4000:]
    assert min(begin for begin, _ in server.fetched) == items[4000].start.offset


def test_an_extent_that_ends_with_a_line_fetches_nothing_more(server: Server) -> None:
    source = listed(server.put("a.txt", b"three\n" * 100))
    server.fetched.clear()  # so small a file is looked at whole when it is listed: it may be a pointer of Git LFS
    read(source, extent_bytes=60)
    assert server.fetched == [(max(60 * number - 1, 0), 60 * number + 60) for number in range(10)]


def test_all_formats_are_read_over_the_web(server: Server) -> None:
    table = pyarrow.table({"text": texts_of(100)})
    buffer, arrow = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, row_group_size=30)
    with pyarrow.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    contents = {
        "a.jsonl": json_lines(100),
        "a.jsonl.gz": gzip.compress(json_lines(60)) + gzip.compress(json_lines(100)[len(json_lines(60)) :]),
        "a.json": json.dumps([{"text": text} for text in texts_of(100)]).encode(),
        "a.csv": "\n".join(["text", *texts_of(100)]).encode(),
        "a.txt": "\n".join(texts_of(100)).encode(),
        "a.parquet": buffer.getvalue(),
        "a.arrow": arrow.getvalue(),
    }
    for name, content in contents.items():
        source = listed(server.put(name, content))
        assert [item.row["text"] for item in read(source)] == texts_of(100), name


def test_a_query_belongs_to_no_ending(server: Server) -> None:
    url = server.put("a.jsonl.gz", gzip.compress(json_lines(3))) + "?download=true&v=1.2"
    assert locate(Source(path=url)) == ("json", [url])
    assert [item.row["text"] for item in read(listed(url))] == texts_of(3)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_server_that_fails_now_and_then_is_asked_again_and_nothing_is_repeated(server: Server, name: str) -> None:
    content = json_lines(40_000)
    stored = gzip.compress(content, compresslevel=0) if name.endswith(".gz") else content
    source = listed(server.put(name, stored))
    whole = source.extents(len(stored))[0]
    server.failures_left = 2
    found = []
    num_failures = 0
    for item in read_extent(source, whole, START, ["text"], max_bytes=LARGE):
        if len(found) % 15_000 == 0:
            num_failures += 2 - server.failures_left
            server.failures_left = 2
        found.append(item.row["text"])
    num_failures += 2 - server.failures_left
    assert found == texts_of(40_000)
    assert num_failures == 8, "more than it may fail in a row"


def test_a_server_that_keeps_failing_is_a_fault(server: Server) -> None:
    url = server.put("a.jsonl", json_lines(10))
    source = listed(url)
    server.failures_left = 1000
    bad: list[BadRecord] = []
    assert list(read_in_order(source, ["text"], max_bytes=LARGE, report=bad.append)) == []
    assert server.failures_left == 1000 - listing.REMOTE_ATTEMPTS
    assert [(record.file, record.position) for record in bad] == [(url, "row 1")]
    assert bad[0].fault.startswith("cannot be read from here on: 500, message=")


def test_a_file_that_vanishes_is_asked_for_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "REMOTE_WAIT_S", 1000)
    source = listed(server.put("a.jsonl", json_lines(10)))
    server.files.clear()
    (item,) = read(source)
    assert item.fault == f"cannot be read from here on: {source.files[0].url}"


def test_a_server_without_ranges_is_a_fault_where_a_part_is_needed(server: Server) -> None:
    content = json_lines(5000)
    source = listed(server.put("a.jsonl", content))
    server.knows_ranges = False
    items = read(source, extent_bytes=len(content) // 2)
    assert [item.fault for item in items] == [
        f"cannot be read from here on: {len(content)} bytes came instead of bytes {begin} to {end}; the server must "
        "support ranges"
        for begin, end in ((0, len(content) // 2), (len(content) // 2 - 1, len(content)))
    ]


def test_what_is_not_there_is_refused(server: Server) -> None:
    url = server.put("a.jsonl", b"")
    with pytest.raises(DataError, match=f"^{re.escape(url)}: empty; give at least one row"):
        listed(url)
    with pytest.raises(DataError, match=f"^{re.escape(url)}x: no such data file or folder"):
        listed(f"{url}x")
