"""A Hugging Face hub of one data set on this machine: what the package datasets asks of the real one, and no more."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

_COMMIT = "c0ffee" * 6 + "c0ff"


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def hub_of(name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """The address of a hub that knows the data set ``name`` alone, for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlparse(self.path).path)
            if path.startswith(f"/datasets/{name}/resolve/"):
                self._send_file(path.split("/", 6)[6])
            elif path.startswith(f"/api/datasets/{name}/tree/"):
                self._send_json(self._tree(path.partition(_COMMIT)[2].strip("/")))
            elif path == f"/api/datasets/{name}" or path.startswith(f"/api/datasets/{name}/revision/"):
                self._send_json({"id": name, "sha": _COMMIT, "siblings": [{"rfilename": each} for each in files]})
            else:
                self._send(404, b"Repository not found", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET  # noqa: N815

        def _tree(self, folder: str) -> list[dict[str, object]]:
            inside = f"{folder}/" if folder else ""
            below = [each for each in files if each.startswith(inside)]
            folders = {each[len(inside) :].split("/")[0] for each in below if "/" in each[len(inside) :]}
            return [
                *({"type": "directory", "oid": _COMMIT, "size": 0, "path": inside + each} for each in folders),
                *(
                    {"type": "file", "oid": _digest(files[each]), "size": len(files[each]), "path": each}
                    for each in below
                    if "/" not in each[len(inside) :]
                ),
            ]

        def _send_file(self, path: str) -> None:
            if path not in files:
                return self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
            return self._send(200, files[path], {"ETag": f'"{_digest(files[path])}"', "X-Repo-Commit": _COMMIT})

        def _send_json(self, content: object) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
