"""A server of HTTP on this machine that stalls, cuts connections, answers 503 or has no ranged reads, as told."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FlakyServer(ThreadingHTTPServer):
    """Serves a folder. fault: path, number of its requests before -> "503", "403", "429", "cut", "stall" or ""."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Callable[[str, int], str] = lambda path, before: ""
        self.ranges = True
        self.requests: Counter[str] = Counter()
        self.methods: Counter[str] = Counter()
        self.sent_bytes = 0
        self.pages: dict[str, bytes] = {}  # HTML in place of a folder's own
        self.released = threading.Event()  # ends the stalls
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def reset(self) -> None:
        self.requests.clear()
        self.methods.clear()
        self.sent_bytes = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are part of the tests."""


@contextmanager
def serve(folder: Path) -> Iterator[FlakyServer]:
    server = FlakyServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FlakyServer

    def __init__(self, request: Any, address: Any, server: FlakyServer) -> None:
        super().__init__(request, address, server, directory=str(server.folder))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        if not self._failed():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self._failed():
            return
        page = self.server.pages.get(self.path)
        if page is not None:
            self._send(200, page, "text/html")
            return
        file = Path(self.translate_path(self.path))
        if file.is_dir() or not file.is_file():
            super().do_GET()
            return
        content, kind = file.read_bytes(), self.guess_type(str(file))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.server.ranges:
            start, end = int(asked[1]), min(int(asked[2]), len(content) - 1)
            self._send(206, content[start : end + 1], kind, f"bytes {start}-{end}/{len(content)}")
        else:
            self._send(200, content, kind)

    def _send(self, status: int, content: bytes, kind: str, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        with self.server.lock:  # before the client has it: a test may ask as soon as it does
            self.server.sent_bytes += len(content)
        self.wfile.write(content)

    def _failed(self) -> bool:
        """Count a request, and fail it if so told."""
        with self.server.lock:
            before = self.server.requests[self.path]
            self.server.requests[self.path] += 1
            self.server.methods[self.command] += 1
        fault = self.server.fault(self.path, before)
        if fault.isdecimal():
            self.send_response(int(fault))
            if fault == "429":
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "cut":  # in the middle of an answer
            self.close_connection = True
            if self.command == "HEAD":
                return True
            file = Path(self.translate_path(self.path))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(file.stat().st_size if file.is_file() else 1000))
            self.end_headers()
            self.wfile.write(b"<html>")
        elif fault == "stall":
            self.close_connection = True
            self.server.released.wait(20)
        return bool(fault)
