"""The official OpenAI client against a real `phalanx serve` with the demo model; `.ci/clients` runs it.

The demo model's answers are known, and what is compared otherwise is two ways to ask for one answer.
"""

import json
import sys
import time
import urllib.request

import openai

URL = sys.argv[1]
QUESTION = [{"role": "user", "content": "sort 7315="}]
ANSWER = "1357;"

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)
MODEL = client.models.list().data[0].id


def chat(**more):
    return client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "temperature": 0, **more})


def complete(**more):
    return client.completions.create(**{"model": MODEL, "prompt": "rev abcde=", "temperature": 0, **more})


def cluster():
    with urllib.request.urlopen(f"{URL}/cluster", timeout=30) as response:
        return json.load(response)


def refused(error, param, code, ask):
    try:
        ask()
    except error as found:
        assert found.param == param and found.code == code, (found.param, found.code, found.message)
        assert found.message and found.type == "invalid_request_error", found
    else:
        raise AssertionError(f"{param} was not refused")


def models_are_listed():
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "phalanx"), model
    refused(openai.NotFoundError, "model", "model_not_found", lambda: client.models.retrieve("gpt-4"))


def a_chat_is_answered_plain_and_streamed():
    plain = chat()
    choice = plain.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    *chunks, last = chat(stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage == plain.usage, last
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    # The client's own way to put a stream together, and the message sent back as it came.
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.content == ANSWER, message
    turn = {"role": "user", "content": [{"type": "text", "text": "rev abcde="}]}
    again = chat(messages=[*QUESTION, choice.message, turn], max_completion_tokens=2)
    assert again.choices[0].finish_reason in ("stop", "length") and again.usage.completion_tokens <= 2


def logprobs_have_their_shapes():
    found = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert "".join(token.token for token in found) == ANSWER
    for token in found:
        # Greedy takes the likeliest.
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
        assert len(token.top_logprobs) == 3 and bytes(token.bytes).decode() == token.token
    streamed = chat(logprobs=True, top_logprobs=3, stream=True)
    assert [token for chunk in streamed for token in chunk.choices[0].logprobs.content] == found
    found = complete(logprobs=2).choices[0]
    assert "".join(found.logprobs.tokens) == found.text and found.logprobs.text_offset[0] == 0


def sampling_is_repeated_by_its_seed():
    wild = dict(temperature=3, max_tokens=30, extra_body={"ignore_eos": True, "top_k": 40, "min_p": 0.001})
    for ask, text in [
        (chat, lambda choice: choice.message.content),
        (complete, lambda choice: choice.text),
    ]:
        alone = [text(ask(seed=seed, **wild).choices[0]) for seed in (5, 6, 7)]
        assert len(set(alone)) == 3, alone
        assert [text(choice) for choice in ask(seed=5, n=3, **wild).choices] == alone
    streamed = complete(seed=5, n=3, stream=True, **wild)
    texts = ["", "", ""]
    for chunk in streamed:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == alone, (texts, alone)


def a_stop_ends_before_itself():
    found = chat(stop=["57"]).choices[0]
    assert (found.message.content, found.finish_reason) == ("13", "stop"), found
    assert complete(max_tokens=3, extra_body={"ignore_eos": True}).choices[0].finish_reason == "length"


def what_is_wrong_is_an_error_of_its_kind():
    bad = openai.BadRequestError
    refused(openai.NotFoundError, "model", "model_not_found", lambda: chat(model="gpt-4"))
    refused(bad, "temperature", "invalid_value", lambda: chat(temperature=-1))
    refused(bad, "temperature", "invalid_value", lambda: chat(temperature="hot"))
    refused(bad, "messages", "invalid_value", lambda: chat(messages=[]))
    refused(bad, "prompt", "context_length_exceeded", lambda: complete(prompt="x" * 600))
    refused(bad, "user", "unsupported_parameter", lambda: chat(user="me"))
    json_object = {"type": "json_object"}
    refused(bad, "response_format", "unsupported_parameter", lambda: chat(response_format=json_object))
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    refused(bad, "tools", "unsupported_parameter", lambda: chat(tools=[tool]))
    refused(bad, "phalanx.colour", "unsupported_parameter", lambda: chat(extra_body={"phalanx": {"colour": 1}}))


def a_stream_that_is_closed_is_cancelled():
    stream = complete(prompt="x", n=4, max_tokens=400, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    tokens = cluster()["data"]["tokens"]
    until = time.monotonic() + 30
    while cluster()["data"]["running"] != 0:
        assert time.monotonic() < until, "it still runs"
        time.sleep(0.02)
    computed = cluster()["data"]["tokens"] - tokens
    assert computed < 4 * 400, f"{computed} tokens for nobody"
    assert chat().choices[0].message.content == ANSWER


for check in [
    models_are_listed,
    a_chat_is_answered_plain_and_streamed,
    logprobs_have_their_shapes,
    sampling_is_repeated_by_its_seed,
    a_stop_ends_before_itself,
    what_is_wrong_is_an_error_of_its_kind,
    a_stream_that_is_closed_is_cancelled,
]:
    check()
    print(f"ok {check.__name__}")
