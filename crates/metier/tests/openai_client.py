"""The official `openai` package, unchanged, against a running metier.

Run by `tests/openai_client.rs`:
    python openai_client.py BASE_URL BASE_MODEL ENCODER SPECIALIST TEXT LABEL FAR_TEXT
TEXT is a text that SPECIALIST answers with LABEL; FAR_TEXT is one that it must not accept. Prints a line a check; exit code 1 when one fails.
"""

import asyncio
import collections
import json
import math
import re
import sys
import traceback
import typing
import urllib.request

import openai
import pydantic

BASE_URL, BASE, ENCODER, SPECIALIST, TEXT, LABEL, FAR_TEXT = sys.argv[1:8]
client = openai.OpenAI(base_url=BASE_URL, api_key="none-needed", max_retries=0, timeout=60)

# Few tokens: what is tested is the protocol, not the prose.
SHORT = dict(model=BASE, max_completion_tokens=8, temperature=0, messages=[{"role": "user", "content": "Say hello."}])


def ask_specialist(text, **more):
    return dict(model=SPECIALIST, messages=[{"role": "user", "content": text}], **more)


def models_are_listed_and_retrieved():
    names = {model.id for model in client.models.list()}
    assert {BASE, ENCODER, SPECIALIST, "auto"} <= names, names
    assert client.models.retrieve(SPECIALIST).object == "model"


def unknown_model_is_not_found():
    for call in (
        lambda: client.models.retrieve("nobody"),
        lambda: client.chat.completions.create(**{**SHORT, "model": "nobody"}),
        lambda: client.embeddings.create(model="nobody", input="x"),
    ):
        error = raises(openai.NotFoundError, call)
        assert error.code == "model_not_found", error.body
        assert error.type == "invalid_request_error", error.body
        assert "nobody" in error.message


def base_answers():
    answer = client.chat.completions.create(**SHORT)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == BASE, answer
    assert choice.message.role == "assistant" and choice.message.content, choice
    assert choice.finish_reason in ("stop", "length"), choice
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 8 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert answer._request_id
    again = client.chat.completions.create(**SHORT)
    assert again.choices[0].message.content == choice.message.content, "temperature 0 is deterministic"


def seed_repeats_a_sampled_answer():
    sampled = {**SHORT, "temperature": 1.0, "top_p": 0.9, "seed": 7}
    first, second = (client.chat.completions.create(**sampled).choices[0].message.content for _ in range(2))
    assert first == second


def stream_says_what_the_whole_answer_says():
    whole = client.chat.completions.create(**SHORT).choices[0]
    chunks = list(client.chat.completions.create(**SHORT, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.message.content, (text, whole)
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [whole.finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0, chunks[-1]
    assert len({chunk.id for chunk in chunks}) == 1


def stream_helper_of_the_client_works():
    with client.chat.completions.stream(**ask_specialist(TEXT)) as stream:
        kinds = {event.type for event in stream}
        assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
        assert stream.get_final_completion().choices[0].message.content == LABEL


def stop_strings_end_the_answer():
    whole = client.chat.completions.create(**SHORT).choices[0].message.content
    word = whole.split()[-1]
    cut = client.chat.completions.create(**SHORT, stop=[word]).choices[0]
    assert word not in (cut.message.content or "") and cut.finish_reason == "stop", (whole, cut)


def several_choices_whole_and_in_chunks():
    asked = {**SHORT, "temperature": 1.5, "seed": 5, "n": 3}
    answer = client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) > 1, texts
    assert answer.usage.completion_tokens > 8, "all choices are counted"
    again = client.chat.completions.create(**asked)
    assert [choice.message.content for choice in again.choices] == texts, "a seed fixes every choice"
    streamed, finished = collections.defaultdict(str), {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                finished[choice.index] = choice.finish_reason
    assert [streamed[index] for index in range(3)] == texts, (dict(streamed), texts)
    assert finished == {choice.index: choice.finish_reason for choice in answer.choices}


def penalties_hold_repetition_down():
    asked = dict(model=BASE, max_completion_tokens=40, temperature=0, logprobs=True)
    asked["messages"] = [{"role": "user", "content": "Write the word echo twenty times: echo echo echo echo echo echo"}]

    def most_repeated(**more):
        tokens = client.chat.completions.create(**asked, **more).choices[0].logprobs.content
        return max(collections.Counter(token.token for token in tokens).values())

    free = most_repeated()
    assert free > 6, free
    assert most_repeated(frequency_penalty=2.0, presence_penalty=2.0) < free
    assert most_repeated(extra_body={"repetition_penalty": 1.5}) < free


def logit_bias_forces_and_bans():
    def one(**more):
        return client.chat.completions.create(**{**SHORT, "max_completion_tokens": 40, "logprobs": True, **more}).choices[0]

    END = "2"  # <|im_end|> of the base that the tests use
    free, ended, endless = one(), one(logit_bias={END: 100}), one(logit_bias={END: -100})
    assert free.finish_reason == "stop", "the example ends by itself"
    assert (ended.message.content, ended.finish_reason) == ("", "stop"), ended
    assert endless.finish_reason == "length", endless
    forced = one(logit_bias={"5000": 100}).logprobs.content
    assert len(forced) == 40 and len({token.token for token in forced}) == 1, forced


def prompt_lookup_changes_nothing_but_the_time():
    invoice = "Invoice 4711 of 3 March: 12 office chairs, 4,120 euros, due on 2 April, account DE89 3704 0044 0532 0130 00."
    asked = dict(model=BASE, max_completion_tokens=48, temperature=0)
    asked["messages"] = [{"role": "user", "content": f"{invoice}\n\nRepeat the invoice word for word."}]
    plain, looked_up = (
        client.chat.completions.create(**asked, extra_body={"prompt_lookup": on}).choices[0] for on in (False, True)
    )
    assert plain.message.content and plain == looked_up, (plain, looked_up)


def min_p_leaves_the_probable_tokens():
    hot = {**SHORT, "temperature": 2.0, "seed": 3}
    greedy = client.chat.completions.create(**SHORT).choices[0].message.content
    assert client.chat.completions.create(**hot).choices[0].message.content != greedy
    assert client.chat.completions.create(**hot, extra_body={"min_p": 1}).choices[0].message.content == greedy


def base_fills_a_schema_and_any_object():
    class Verdict(pydantic.BaseModel):
        kind: typing.Literal["praise", "complaint"]
        urgent: bool

    asked = dict(model=BASE, max_completion_tokens=64, temperature=0)
    asked["messages"] = [{"role": "user", "content": "The parcel is late again! Praise or complaint?"}]
    choice = client.chat.completions.parse(**asked, response_format=Verdict).choices[0]
    assert choice.finish_reason == "stop" and choice.message.parsed.kind in ("praise", "complaint"), choice
    for choice in client.chat.completions.create(**asked, n=2, response_format={"type": "json_object"}).choices:
        assert choice.message.content.startswith("{"), choice
        assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict), choice


def base_follows_an_expression_and_a_choice():
    asked = dict(model=BASE, max_completion_tokens=32, temperature=0)
    asked["messages"] = [{"role": "user", "content": "The parcel is late again! Praise or complaint?"}]
    for form, allowed in (
        ({"choice": ["praise", "complaint"]}, "praise|complaint"),
        ({"regex": r"ticket [0-9]{4}"}, r"ticket [0-9]{4}"),
    ):
        choice = client.chat.completions.create(**asked, extra_body={"structured_outputs": form}).choices[0]
        assert choice.finish_reason == "stop" and re.fullmatch(allowed, choice.message.content), choice


def base_scores_the_labels_of_a_choice():
    asked = dict(model=BASE, messages=[{"role": "user", "content": "The parcel is late again! Praise or complaint?"}])
    labels = ["praise", "complaint", "complaint about the weather"]
    for how in ("sum", "mean"):
        body = {"structured_outputs": {"choice": labels}, "label_scores": how}
        choice = client.chat.completions.create(**asked, extra_body=body).choices[0]
        scored = choice.logprobs.labels
        assert choice.finish_reason == "stop" and choice.message.content == scored[0]["label"], choice
        assert sorted(one["label"] for one in scored) == sorted(labels), scored
        assert abs(sum(one["share"] for one in scored) - 1) < 1e-4, scored
        assert all(one["logprob"] < 0 and one["tokens"] >= 2 for one in scored), scored
        shares = [one["share"] for one in scored]
        assert shares == sorted(shares, reverse=True), scored
        chunks = list(client.chat.completions.create(**asked, extra_body=body, stream=True))
        texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(texts) == choice.message.content, chunks


def logprobs_are_given():
    answer = client.chat.completions.create(**SHORT, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert 0 < len(tokens) <= 8
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3, token
        assert token.top_logprobs[0].logprob >= token.logprob - 1e-4, "greedy takes the most probable token"


def content_parts_are_read():
    parts = [{"type": "text", "text": TEXT}]
    answer = client.chat.completions.create(model=SPECIALIST, messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == LABEL


def specialist_answers_with_its_label_and_says_why():
    raw = client.chat.completions.with_raw_response.create(**ask_specialist(TEXT))
    answer = raw.parse()
    assert answer.choices[0].message.content == LABEL, answer
    assert answer.choices[0].message.refusal is None and answer.choices[0].finish_reason == "stop"
    assert answer.model == SPECIALIST
    assert raw.headers["x-metier-escalated"] == "no", raw.headers
    assert 0 <= float(raw.headers["x-metier-confidence"]) <= 1, raw.headers
    for name in ("decision", "stage", "cost-usd", "receipt"):
        assert raw.headers[f"x-metier-{name}"], (name, raw.headers)
    assert int(raw.headers["openai-processing-ms"]) < 60_000
    receipt = BASE_URL.removesuffix("/v1") + "/admin/v1/receipts/" + raw.headers["x-metier-receipt"]
    with urllib.request.urlopen(receipt) as answer:
        assert answer.read().startswith(b"c2sp.org/tlog-proof@v1\n")


def specialist_streams():
    chunks = list(client.chat.completions.create(**ask_specialist(TEXT, stream=True)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == LABEL
    assert chunks[-1].model_extra["metier"], "the last chunk tells the decision"


def specialist_fills_a_schema():
    class Labelled(pydantic.BaseModel):
        label: str
        confidence: float

    answer = client.chat.completions.parse(**ask_specialist(TEXT), response_format=Labelled)
    assert answer.choices[0].message.parsed.label == LABEL
    assert 0 <= answer.choices[0].message.parsed.confidence <= 1


def specialist_refuses_what_it_cannot_tell():
    raw = client.chat.completions.with_raw_response.create(**ask_specialist(FAR_TEXT))
    message = raw.parse().choices[0].message
    assert message.content is None and message.refusal.startswith("deferred"), message
    assert raw.headers["x-metier-escalated"] in ("none-available", "denied"), raw.headers


def auto_finds_the_task_or_says_that_none_fits():
    answer = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": TEXT}])
    assert answer.choices[0].message.content == LABEL and answer.model == SPECIALIST, answer


def embeddings_are_the_same_in_both_encodings():
    # The package asks for base64 by itself and decodes it.
    one = client.embeddings.create(model=ENCODER, input="A small boat.")
    two = client.embeddings.create(model=ENCODER, input=["A small boat.", "Tax law."], encoding_format="float")
    first, same, other = one.data[0].embedding, two.data[0].embedding, two.data[1].embedding
    assert len(first) == len(same) == 384 and [item.index for item in two.data] == [0, 1]
    assert max(abs(a - b) for a, b in zip(first, same)) < 1e-6
    assert abs(math.hypot(*first) - 1) < 1e-4 and dot(same, other) < 0.5
    assert one.usage.prompt_tokens > 0


def wrong_values_are_bad_requests():
    for field, more in (
        ("temperature", {"temperature": 9}),
        ("n", {"n": 1000}),
        ("stop", {"stop": ["x"] * 5}),
        ("max_completion_tokens", {"max_completion_tokens": -1}),
        ("messages", {"messages": []}),
        ("messages[0].role", {"messages": [{"role": "king", "content": "x"}]}),
        ("frequency_penalty", {"frequency_penalty": 3}),
        ("presence_penalty", {"presence_penalty": -2.5}),
        ("logit_bias", {"logit_bias": {"hello": 1}}),
        ("logit_bias.7", {"logit_bias": {"7": 101}}),
        ("logit_bias", {"logit_bias": {"99999999": 1}}),
        ("logit_bias", {"logit_bias": {"99999999": 1}, "stream": True}),
        ("repetition_penalty", {"extra_body": {"repetition_penalty": 0}}),
        ("min_p", {"extra_body": {"min_p": 2}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}),
        ("structured_outputs", {"extra_body": {"structured_outputs": {"regex": "("}}}),
        ("label_scores", {"extra_body": {"label_scores": "sum"}}),
        ("structured_outputs.choice", {"extra_body": {"label_scores": "sum", "structured_outputs": {"choice": ["a", "a"]}}}),
        ("structured_outputs.grammar", {"extra_body": {"structured_outputs": {"grammar": "x"}}}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ):
        error = raises(openai.BadRequestError, lambda: client.chat.completions.create(**{**SHORT, **more}))
        assert error.param == field, (field, error.body)
    error = raises(openai.BadRequestError, lambda: client.chat.completions.create(**ask_specialist(TEXT, logit_bias={"7": 1})))
    assert error.param == "logit_bias" and "specialist" in error.message, error.body
    error = raises(openai.BadRequestError, lambda: client.embeddings.create(model=ENCODER, input=""))
    assert error.param == "input[0]", error.body


def too_long_a_context_is_a_bad_request():
    long = {**SHORT, "messages": [{"role": "user", "content": "word " * 12_000}]}
    error = raises(openai.BadRequestError, lambda: client.chat.completions.create(**long))
    assert error.code == "context_length_exceeded", error.body


def unknown_route_is_not_found():
    error = raises(openai.NotFoundError, lambda: client.post("/assistants", cast_to=object, body={}))
    assert error.code == "unknown_url", error.body


def timeouts_and_abandoned_streams_leave_the_server_well():
    hasty = client.with_options(timeout=0.02)
    raises(openai.APITimeoutError, lambda: hasty.chat.completions.create(**{**SHORT, "max_completion_tokens": 512}))
    with client.chat.completions.create(**{**SHORT, "max_completion_tokens": 512}, stream=True) as stream:
        next(iter(stream))
    base_answers()


def many_at_once():
    async def main():
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0, timeout=120) as several:
            asks = [several.chat.completions.create(**ask_specialist(TEXT)) for _ in range(16)]
            asks += [several.chat.completions.create(**SHORT) for _ in range(4)]
            return await asyncio.gather(*asks)

    answers = asyncio.run(main())
    assert {answer.choices[0].message.content for answer in answers[:16]} == {LABEL}
    assert len({answer.choices[0].message.content for answer in answers[16:]}) == 1, "a batch answers as its members alone"


def dot(left, right):
    return sum(a * b for a, b in zip(left, right))


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")


failed = 0
checks = [value for value in list(globals().values()) if getattr(value, "__module__", None) == "__main__" and callable(value)]
for check in checks:
    if check in (ask_specialist, dot, raises):
        continue
    try:
        check()
        print(f"ok      {check.__name__}", flush=True)
    except Exception:
        failed += 1
        print(f"FAILED  {check.__name__}\n{traceback.format_exc()}", flush=True)
print(f"openai {openai.__version__}: {failed} failed")
sys.exit(1 if failed else 0)
