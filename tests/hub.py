"""A model hub on this machine: files of a folder over HTTP, with what was asked of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Hub:
    """``files``: path → content, or a path to send the client on to; ``gated``: paths that want a token."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Path | str] = {}
        self.gated: set[str] = set()
        self.asked: list[tuple[str, str | None]] = []  # path, Authorization
        self.address = ""

    def put(self, prefix: str, folder: Path) -> None:
        self.files |= {f"{prefix}/{p.relative_to(folder)}": p for p in folder.rglob("*") if p.is_file()}

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                token = self.headers.get("Authorization")
                hub.asked.append((self.path, token))
                found = hub.files.get(self.path)
                if self.path in hub.gated and token is None:
                    self.send_error(401)
                elif found is None:
                    self.send_error(404)
                elif isinstance(found, str):
                    self.send_response(302)
                    self.send_header("Location", found)
                    self.end_headers()
                else:
                    content = found.read_bytes() if isinstance(found, Path) else found
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
