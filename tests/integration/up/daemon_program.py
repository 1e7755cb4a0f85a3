"""A small daemon for tests: answers HTTP on a port, or misbehaves as its first argument says."""

import http.server
import os
import signal
import sys
import time

behaviour, port = sys.argv[1], int(sys.argv[2])
print(f"[W to day start] {behaviour} pid={os.getpid()}", flush=True)
if behaviour == "fails":
    print("ValueError: no such luck", flush=True)
    sys.exit(3)
if behaviour == "deaf":
    time.sleep(600)
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Handler(http.server.BaseHTTPRequestHandler):
    """Every path is fine."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())

    def log_message(self, *arguments: object) -> None:
        """Be quiet."""


http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
