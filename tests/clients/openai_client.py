"""The official OpenAI client against two real `phalanx serve` with the demo model; `.ci/clients` runs it.

The demo model's answers are known, and what is compared otherwise is two ways to ask for one answer. The second server wants
a key, and its model has a chat template that shows tools: what it calls is right by its form and means nothing.
"""

import json
import sys
import time
import urllib.request

import openai

URL, TOOLS_URL, KEY = sys.argv[1:]
QUESTION = [{"role": "user", "content": "sort 7315="}]
ANSWER = "1357;"
# The demo model knows no JSON and likes white space: without it there is room for an answer.
TIGHT = {"9": -100, "10": -100, "13": -100, "32": -100}

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)
MODEL = client.models.list().data[0].id
caller = openai.OpenAI(base_url=f"{TOOLS_URL}/v1", api_key=KEY, max_retries=0, timeout=60)
CALLER = caller.models.list().data[0].id


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
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}
    refused(bad, "response_format.json_schema.schema", "invalid_value", lambda: chat(response_format=schema))
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    refused(bad, "tools", "unsupported_parameter", lambda: chat(tools=[tool]))
    refused(bad, "max_tokens", "invalid_value", lambda: complete(max_tokens=0))
    refused(bad, "phalanx.colour", "unsupported_parameter", lambda: chat(extra_body={"phalanx": {"colour": 1}}))


def prompts_are_as_likely_as_answers():
    answer = complete(logprobs=1, max_tokens=6).choices[0]
    whole = complete(prompt="rev abcde=" + answer.text, echo=True, logprobs=1, max_tokens=0).choices[0]
    count = len(answer.logprobs.tokens)
    assert whole.text == "rev abcde=" + answer.text and whole.logprobs.token_logprobs[0] is None, whole
    # What was computed as an answer, token by token, is computed as a prompt to the same bits.
    assert whole.logprobs.token_logprobs[-count:] == answer.logprobs.token_logprobs, (whole, answer)
    assert whole.logprobs.top_logprobs[-count:] == answer.logprobs.top_logprobs


def prompts_may_be_listed_and_repeated():
    prompts = ["rev abcde=", "sort 7315=", "add 1+2="]
    alone = [complete(prompt=prompt, max_tokens=6).choices[0].text for prompt in prompts]
    found = complete(prompt=prompts, max_tokens=6)
    assert [choice.text for choice in found.choices] == alone, found
    behind = [prompt + text for prompt, text in zip(prompts, alone)]
    assert [choice.text for choice in complete(prompt=prompts, max_tokens=6, echo=True).choices] == behind
    texts = ["", "", ""]
    for chunk in complete(prompt=prompts, max_tokens=6, echo=True, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == behind, texts


def answers_keep_to_their_schema():
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "sums": {"type": "array", "items": {"type": "integer", "maximum": 999}, "minItems": 1, "maxItems": 4},
            "kind": {"anyOf": [{"type": "null"}, {"enum": ["sort", "rev", "add"]}]},
        },
        "required": ["name", "sums", "kind"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    for temperature in (0, 1, 5):
        ask = dict(temperature=temperature, seed=3, max_tokens=400, response_format=wanted, logit_bias=TIGHT)
        text = chat(**ask).choices[0].message.content
        value = json.loads(text)
        assert list(value) == ["name", "sums", "kind"] and len(value["name"]) <= 12, text
        assert 1 <= len(value["sums"]) <= 4 and all(type(sum) is int and sum <= 999 for sum in value["sums"]), text
        assert value["kind"] in (None, "sort", "rev", "add"), text
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chat(stream=True, **ask))
        assert streamed == text, (streamed, text)
    assert chat(response_format={"type": "text"}).choices[0].message.content == ANSWER
    likely = dict(logit_bias={**TIGHT, "125": 50}, max_tokens=400)
    assert isinstance(json.loads(chat(response_format={"type": "json_object"}, **likely).choices[0].message.content), dict)


def tools_are_called():
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "rain", "parameters": parameters}}]
    ask = dict(model=CALLER, messages=QUESTION, tools=tools, temperature=2, seed=4, max_tokens=200, logit_bias=TIGHT)
    named = {"type": "function", "function": {"name": "rain"}}
    for choice in ("required", named):
        found = caller.chat.completions.create(tool_choice=choice, parallel_tool_calls=False, **ask).choices[0]
        (call,) = found.message.tool_calls
        assert (found.finish_reason, found.message.content, call.function.name) == ("tool_calls", None, "rain"), found
        arguments = json.loads(call.function.arguments)
        assert len(arguments["city"]) <= 8 and 1 <= arguments["days"] <= 9, arguments
        # The client's own way to put a stream together.
        more = dict(tool_choice=choice, parallel_tool_calls=False, **ask)
        with caller.chat.completions.stream(**more) as stream:
            (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
        assert streamed.function.arguments == call.function.arguments, streamed
    # What was called goes back as it came, with what it gave.
    turns = [*QUESTION, found.message, {"role": "tool", "tool_call_id": call.id, "content": "wet"}]
    again = caller.chat.completions.create(**{**ask, "messages": turns, "max_tokens": 2})
    assert again.choices[0].finish_reason in ("stop", "length"), again
    free = caller.chat.completions.create(**{**ask, "max_tokens": 9}).choices[0]
    assert not free.message.tool_calls and free.message.content is not None, free


def strangers_are_turned_away():
    for key in ("none", KEY[:-1], KEY + "0"):
        stranger = openai.OpenAI(base_url=f"{TOOLS_URL}/v1", api_key=key, max_retries=0, timeout=60)
        refused(openai.AuthenticationError, None, "invalid_api_key", lambda: stranger.models.list())
    with urllib.request.urlopen(f"{TOOLS_URL}/health", timeout=30) as response:
        assert response.status == 200


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
    prompts_are_as_likely_as_answers,
    prompts_may_be_listed_and_repeated,
    answers_keep_to_their_schema,
    tools_are_called,
    strangers_are_turned_away,
    what_is_wrong_is_an_error_of_its_kind,
    a_stream_that_is_closed_is_cancelled,
]:
    check()
    print(f"ok {check.__name__}")
