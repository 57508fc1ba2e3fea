"""Heads of Ray clusters that are none: what a head says before it is used, said by these."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

TOKEN = "right-token"


@contextmanager
def gcs(token: str | None, facts: dict[str, str], nodes: tuple[str, ...]) -> Iterator[str]:
    """The address of one that has these facts and nodes, for who shows its token."""
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    def admit(context: Any) -> None:
        shown = dict(context.invocation_metadata()).get("authorization")
        if token is not None and shown != f"Bearer {token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")

    class Facts(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):
        def InternalKVGet(self, request: Any, context: Any) -> Any:  # noqa: N802
            admit(context)
            return gcs_service_pb2.InternalKVGetReply(value=json.dumps(facts).encode())

    class Nodes(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
        def GetAllNodeInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
            admit(context)
            reply = gcs_service_pb2.GetAllNodeInfoReply()
            for address in nodes:
                reply.node_info_list.add(node_manager_address=address)
            return reply

    server = grpc.server(futures.ThreadPoolExecutor(2))
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(Facts(), server)
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Nodes(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def dashboard(
    answers: dict[str, Any], token: str | None = None
) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """The address of one with these answers to GET, path: JSON, and the (path, token) it was
    asked. token: what it wants to see for all but /api/authentication_mode."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown = self.headers.get("Authorization")
            asked.append((self.path, shown))
            found = answers.get(self.path)
            status = 404 if found is None else 200
            if token is not None and self.path != "/api/authentication_mode":
                status = status if shown == f"Bearer {token}" else (403 if shown else 401)
            body = json.dumps(found).encode() if status == 200 else b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
