"""Traces of a real `phalanx serve` read by OpenTelemetry's own messages; `.ci/clients` runs it.

What a collector would take is parsed as the protocol's protobuf has it: a field that is spelled otherwise, or of another type, is an
error. Identities are hexadecimal in OTLP's JSON, where protobuf's JSON has base64.
"""

import base64
import json
import signal
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

heard = []


class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        heard.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


def as_protobuf(value):
    if isinstance(value, list):
        return [as_protobuf(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    ids = ("traceId", "spanId", "parentSpanId")
    return {
        key: base64.b64encode(bytes.fromhex(inner)).decode() if key in ids else as_protobuf(inner)
        for key, inner in value.items()
    }


collector = HTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=collector.serve_forever, daemon=True).start()
server = subprocess.Popen(
    [sys.argv[1], "serve", "--http", "127.0.0.1:0", "--otlp", f"http://127.0.0.1:{collector.server_port}", "--otlp-share", "1"],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
)
try:
    url = next(line.split(" at ")[1].strip() for line in server.stdout if line.startswith("serving "))
    threading.Thread(target=server.stdout.read, daemon=True).start()
    while True:
        try:
            urllib.request.urlopen(f"{url}/ready", timeout=10)
            break
        except urllib.error.HTTPError:
            pass
    body = json.dumps({"prompt": "rev abcde=", "max_tokens": 4, "temperature": 0, "ignore_eos": True}).encode()
    headers = {"Content-Type": "application/json", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers), timeout=60).read()
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=60) == 0
finally:
    server.kill()

spans = []
for path, content, request in heard:
    assert (path, content) == ("/v1/traces", "application/json"), (path, content)
    parsed = ParseDict(as_protobuf(request), ExportTraceServiceRequest())
    for resource in parsed.resource_spans:
        names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
        assert names["service.name"] == "phalanx-coordinator", names
        spans += [span for scope in resource.scope_spans for span in scope.spans]
by_id = {span.span_id: span for span in spans}
assert all(len(span.trace_id) == 16 and len(span.span_id) == 8 for span in spans)
assert {span.trace_id for span in spans} == {b"\xab" * 16}
(request,) = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
assert request.parent_span_id == b"\xcd" * 8 and request.status.code == Status.STATUS_CODE_UNSET
attributes = {attribute.key: attribute.value for attribute in request.attributes}
assert attributes["gen_ai.usage.output_tokens"].int_value == 4
names = sorted({span.name for span in spans if by_id.get(span.parent_span_id) is request})
assert names == ["decode", "prefill", "queued"], names
dispatches = [span for span in spans if span.name == "dispatch"]
assert dispatches and {by_id[span.parent_span_id].name for span in dispatches} == {"decode", "prefill"}
assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in spans)
print(f"ok {len(spans)} spans are OpenTelemetry's")
