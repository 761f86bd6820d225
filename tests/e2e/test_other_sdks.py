"""SDKs and frameworks in environments of their own: what they ask, the gateway answers so that they understand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.clients import CACHE, npm_program, python_of, run
from tests.fakes.engine import FakeEngine
from tests.gateway.support import running

PERSONAS = {"plan": {"engine": "big", "system": "You plan."}, "embed": {"engine": "big", "prefix": "q: "}}

OPENAI = """
import json, os
from openai import OpenAI, NotFoundError
c = OpenAI(base_url=os.environ["BASE"], api_key=os.environ["KEY"], max_retries=0)
ask = [{"role": "user", "content": "hello"}]
whole = c.chat.completions.create(model="plan", messages=ask)
parts = [x.choices[0].delta.content or "" for x in c.chat.completions.create(model="plan", messages=ask, stream=True)]
try:
    c.chat.completions.create(model="nope", messages=ask)
except NotFoundError as error:
    code = error.code
vector = c.embeddings.create(model="embed", input="hi").data[0].embedding
models = [m.id for m in c.models.list()]
print(json.dumps([whole.choices[0].message.content, "".join(parts), code, vector, models]))
"""
LANGCHAIN = """
import json, os
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_core.tools import tool
where = {"base_url": os.environ["BASE"], "api_key": os.environ["KEY"], "max_retries": 0}
chat = ChatOpenAI(model="plan", **where)
whole = chat.invoke("hello").content
parts = "".join(part.content for part in chat.stream("hello"))
vector = OpenAIEmbeddings(model="embed", check_embedding_ctx_length=False, **where).embed_query("hi")
print(json.dumps([whole, parts, vector]))
"""
LLAMAINDEX = """
import json, os
from llama_index.llms.openai_like import OpenAILike
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
where = {"api_base": os.environ["BASE"], "api_key": os.environ["KEY"], "max_retries": 0}
chat = OpenAILike(model="plan", is_chat_model=True, context_window=8000, **where)
plain = OpenAILike(model="plan", context_window=8000, **where)
vector = OpenAILikeEmbedding(model_name="embed", **where).get_query_embedding("hi")
print(json.dumps([chat.complete("hello").text, plain.complete("hello").text, vector]))
"""
LITELLM = """
import json, os
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
where = {"api_base": os.environ["BASE"], "api_key": os.environ["KEY"]}
ask = [{"role": "user", "content": "hello"}]
whole = litellm.completion(model="openai/plan", messages=ask, **where)
parts = litellm.completion(model="hosted_vllm/plan", messages=ask, stream=True, **where)
text = "".join(part.choices[0].delta.content or "" for part in parts)
vector = litellm.embedding(model="openai/embed", input=["hi"], **where).data[0]["embedding"]
print(json.dumps([whole.choices[0].message.content, text, vector]))
"""
NODE = """
import OpenAI from "openai";
import { generateText, streamText } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
const client = new OpenAI({ baseURL: process.env.BASE, apiKey: process.env.KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const whole = await client.chat.completions.create({ model: "plan", messages });
let parts = "";
for await (const chunk of await client.chat.completions.create({ model: "plan", messages, stream: true }))
  parts += chunk.choices[0]?.delta?.content ?? "";
const vector = (await client.embeddings.create({ model: "embed", input: "hi" })).data[0].embedding;
const provider = createOpenAICompatible({ name: "lmtower", baseURL: process.env.BASE, apiKey: process.env.KEY });
const sdk = await generateText({ model: provider("plan"), prompt: "hello" });
let streamed = "";
for await (const text of streamText({ model: provider("plan"), prompt: "hello" }).textStream) streamed += text;
console.log(JSON.stringify([whole.choices[0].message.content, parts, Array.from(vector), sdk.text, streamed]));
"""
FRIGATE = """
import base64, json, os
from openai import OpenAI
c = OpenAI(api_key=os.environ["KEY"], base_url=os.environ["BASE"].removesuffix("/v1"))
frame = base64.b64encode(open("frame.jpg", "rb").read()).decode()
image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{frame}", "detail": "low"}}
said = [{"role": "user", "content": [{"type": "text", "text": "Review."}, *[image] * 5]}]
properties = {"title": {"type": "string", "minLength": 1, "maxLength": 80}, "score": {"type": "number", "minimum": 0}}
schema = {"type": "object", "properties": properties, "required": ["title", "score"], "additionalProperties": False}
form = {"type": "json_schema", "json_schema": {"name": "review_metadata", "strict": True, "schema": schema}}
result = c.chat.completions.create(model="eyes", messages=said, timeout=120, response_format=form)
context = [m.max_model_len for m in c.models.list() if m.id == "eyes"]
print(json.dumps([result.choices[0].message.content, context]))
"""
SAID, VECTOR = "one two three", [0.25, -0.5]


async def ask(tmp_path: Path, python: str, script: str) -> list[object]:
    """Run the script with that client's interpreter against a gateway; its last line is JSON."""
    program = python_of(python)
    with FakeEngine() as engine:
        engine.script(text=SAID, vector=VECTOR)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            env = {"BASE": f"{tower.base}/v1", "KEY": tower.key}
            ran = await run(program, "-c", script, folder=tmp_path, env=env)
    assert ran.status == 0, ran.output
    found: list[object] = json.loads(ran.output.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize("version", ["openai165", "openai2"])
async def test_older_openai_sdks_work(tmp_path: Path, version: str) -> None:
    """1.65 is what Frigate pins; 2.x is everywhere."""
    found = await ask(tmp_path, version, OPENAI)
    assert found == [SAID, SAID, "model_not_found", VECTOR, list(PERSONAS)]


async def test_frigates_exact_request_works(tmp_path: Path) -> None:
    """Frames as JPEG with detail low, a strict schema, no /v1 in the base URL, the context from the models list."""
    Image.new("RGB", (640, 480), "teal").save(tmp_path / "frame.jpg")
    eyes = {"engine": "big", "thinking": "off", "context": 16000, "images": {"max_side": 320, "max_count": 16}}
    program = python_of("openai165")
    with FakeEngine() as engine:
        engine.script(text='{"title": "A cat", "score": 1}', image_tokens=400, input_tokens=500)
        async with running(tmp_path, engine, personas={"eyes": eyes}) as tower:
            env = {"BASE": f"{tower.base}/v1", "KEY": tower.key}
            ran = await run(program, "-c", FRIGATE, folder=tmp_path, env=env)
            [record] = await tower.records(1)
        [sent] = [request.json for request in engine.requests if request.method == "POST"]
    assert ran.status == 0, ran.output
    assert json.loads(ran.output.strip().splitlines()[-1]) == ['{"title": "A cat", "score": 1}', [16000]]
    assert sent["response_format"]["json_schema"]["strict"] is True
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert [part["image_url"]["detail"] for part in sent["messages"][0]["content"][1:]] == ["low"] * 5
    assert (record.images, record.image_tokens) == (5, 400)


async def test_langchain_works(tmp_path: Path) -> None:
    """Chat, stream and embeddings."""
    assert await ask(tmp_path, "frameworks", LANGCHAIN) == [SAID, SAID, VECTOR]


async def test_llama_index_works(tmp_path: Path) -> None:
    """Its default for unknown models is the completions route."""
    assert await ask(tmp_path, "frameworks", LLAMAINDEX) == [SAID, SAID, VECTOR]


async def test_litellm_works(tmp_path: Path) -> None:
    """As ``openai/`` and as ``hosted_vllm/``."""
    assert await ask(tmp_path, "litellm", LITELLM) == [SAID, SAID, VECTOR]


async def test_openai_node_and_the_ai_sdk_work(tmp_path: Path) -> None:
    """openai-node decodes embeddings as base64 without looking."""
    npm_program("claude")
    script = CACHE / "npm" / f"sdk-{tmp_path.name}.mjs"
    script.write_text(NODE)
    with FakeEngine() as engine:
        engine.script(text=SAID, vector=VECTOR)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            env = {"BASE": f"{tower.base}/v1", "KEY": tower.key}
            ran = await run("node", script, folder=tmp_path, env=env)
    script.unlink()
    assert ran.status == 0, ran.output
    assert json.loads(ran.output.strip().splitlines()[-1]) == [SAID, SAID, VECTOR, SAID, SAID]
