"""A load of an independent client, LLMeter, against a real `phalanx serve` with the demo model; `.ci/clients` runs it.

LLMeter makes the load and counts what it hears. Here it is compared with what was asked for and with what the server says of
itself: no request fails, none is lost, and all count the same tokens.
"""

import asyncio
import json
import sys
import urllib.request

from llmeter.endpoints.openai import OpenAICompletionEndpoint, OpenAICompletionStreamEndpoint
from llmeter.runner import Runner

URL = sys.argv[1]
CLIENTS, REQUESTS, TOKENS = 8, 4, 16
MODEL = json.load(urllib.request.urlopen(f"{URL}/v1/models", timeout=30))["data"][0]["id"]


def server():
    with urllib.request.urlopen(f"{URL}/cluster", timeout=30) as response:
        return json.load(response)["data"]


def payload(number):
    return {
        "messages": [{"role": "user", "content": f"sort {1000 + 37 * number}="}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }


def check(endpoint, name):
    before = server()
    runner = Runner(endpoint, timeout=60)
    payloads = [payload(number) for number in range(REQUESTS)]
    result = asyncio.run(runner.run(payload=payloads, clients=CLIENTS, n_requests=REQUESTS))
    count = CLIENTS * REQUESTS
    failed = [response.error for response in result.responses if response.error]
    assert not failed, failed[:3]
    assert len(result.responses) == count, len(result.responses)
    assert {response.num_tokens_output for response in result.responses} == {TOKENS}, "every answer has its tokens"
    texts = {}
    for response in result.responses:
        assert response.num_tokens_input > 0 and response.response_text, response
        texts.setdefault(json.dumps(response.input_payload["messages"]), set()).add(response.response_text)
    assert len(texts) == REQUESTS and all(len(found) == 1 for found in texts.values()), "one question, one answer"
    after = server()
    assert after["tokens"] - before["tokens"] == count * TOKENS, (before["tokens"], after["tokens"])
    assert (after["running"], after["waiting"], after["dispatches"]["rows_failed"]) == (0, 0, 0), after
    rate = count * TOKENS / result.total_test_time
    print(f"ok {name}: {count} requests of {CLIENTS} clients, {rate:.0f} tokens/s")


access = dict(model_id=MODEL, base_url=f"{URL}/v1", api_key="none", max_retries=0)
check(OpenAICompletionStreamEndpoint(**access), "streams")
check(OpenAICompletionEndpoint(**access), "whole answers")
