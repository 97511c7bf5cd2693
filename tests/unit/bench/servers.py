"""Small real servers, each a process of its own, for tests of what measures processes: test_churn, test_startup."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from bench.contestants import Contestant, launch
from proxy.embedded import HOST, free_port, wait_for

# Answers PONG; with "leak" it keeps a descriptor of every client; with "fork" a child of a child serves.
PONG = """
import os, selectors, socket, sys
if "fork" in sys.argv:
    for _ in range(2):
        if child := os.fork():
            os.waitpid(child, 0)
            os._exit(0)
kept = []
poll = selectors.DefaultSelector()
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=500)
poll.register(listening, selectors.EVENT_READ)
while True:
    for key, _ in poll.select():
        sock = key.fileobj
        if sock is listening:
            client, _ = sock.accept()
            poll.register(client, selectors.EVENT_READ)
            if "leak" in sys.argv:
                kept.append(os.dup(client.fileno()))
            continue
        try:
            data = sock.recv(100)
        except ConnectionResetError:
            data = b""
        if data:
            sock.send(b"+PONG\\r\\n")
        else:
            poll.unregister(sock)
            sock.close()
"""
# Is ready at the third time it is asked.
HTTP = """
import http.server, sys
asked = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        self.send_response(200 if len(asked) > 2 and self.path == "/ready" else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def start_pong(folder: Path, *words: str) -> Contestant:
    """The first, accepting; to be stopped."""
    contestant = Contestant("pong", free_port(), workers="1")
    launch(contestant, [sys.executable, "-c", PONG, str(contestant.port), *words], folder, {})
    wait_for(lambda: accepts(contestant.port), 10, "the server listens")
    return contestant


def launch_http(folder: Path) -> tuple[Contestant, int]:
    """The second, just started, as bench.startup wants it."""
    contestant = Contestant("http", 0, workers="1", admin_port=free_port(), ready="/ready")
    return launch(contestant, [sys.executable, "-c", HTTP, str(contestant.admin_port)], folder, {}), 1


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
