"""What watches a cluster, against a real `phalanx serve`: Prometheus's own parser, and a validator of OpenAPI documents.

`.ci/clients` runs it after the other clients, so that there is something to be counted.
"""

import json
import sys
import urllib.request

from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client.parser import text_string_to_metric_families

URL = sys.argv[1]


def get(path):
    with urllib.request.urlopen(f"{URL}{path}", timeout=30) as response:
        return response.headers, response.read().decode()


def metrics_are_what_prometheus_reads():
    headers, text = get("/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4"), headers
    families = {family.name: family for family in text_string_to_metric_families(text)}
    kinds = {name: family.type for name, family in families.items()}
    for name, kind in [
        ("phalanx_tokens", "counter"),
        ("phalanx_token_first_seconds", "histogram"),
        ("phalanx_batch_rows", "histogram"),
        ("phalanx_link_dispatch_seconds", "summary"),
        ("phalanx_kv_pages_free", "gauge"),
    ]:
        assert kinds.get(name) == kind, (name, kinds.get(name))
    assert all(family.samples and family.documentation for family in families.values()), kinds
    (tokens,) = families["phalanx_tokens"].samples
    assert tokens.value > 0, tokens
    cluster = json.loads(get("/cluster")[1])
    series = families["phalanx_expert_rows"].samples
    assert len(series) == len(cluster["loads"]), (len(series), len(cluster["loads"]))
    # Every row of a group is a row of an expert.
    rows = sum(sample.value for sample in series)
    assert 0 < rows <= cluster["data"]["group_rows"], (rows, cluster["data"]["group_rows"])


def the_document_is_valid_openapi():
    document = json.loads(get("/openapi.json")[1])
    OpenAPIV31SpecValidator(document).validate()
    for path in document["paths"]:
        if "{" not in path and "get" in document["paths"][path]:
            headers, _ = get(path)
            (kind,) = document["paths"][path]["get"]["responses"]["200"]["content"]
            assert headers.get_content_type() == kind, (path, headers)


for check in [metrics_are_what_prometheus_reads, the_document_is_valid_openapi]:
    check()
    print(f"ok {check.__name__}")
