"""Autocomplete prompts, images, embedding inputs and rerank documents: tables of what comes in and what goes out."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from lmtower import recipes
from lmtower.config.types import Images
from lmtower.recipes.load import FimTemplate, ImageTokens
from lmtower.wire import cl100k, embeddings, fim, images, rerank
from lmtower.wire.faults import Fault
from lmtower.wire.infill import pick

HOLE = fim.Hole("before", "after")
FILES = (fim.File("a.py", "A\n"), fim.File("b.py", "B"))
RENDERED = {
    "qwen2.5-coder": "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>",
    "starcoder2": "<fim_prefix>before<fim_suffix>after<fim_middle>",
    "codellama": "<PRE> before <SUF>after <MID>",
    "deepseek-coder": "<｜fim▁begin｜>before<｜fim▁hole｜>after<｜fim▁end｜>",
    "codestral": "[SUFFIX]after[PREFIX]before",
    "granite": "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>",
    "granite-code": "<fim_prefix>before<fim_suffix>after<fim_middle>",
    "codegemma": "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>",
}


def template(name: str) -> FimTemplate:
    found = recipes.get(name).fim
    assert found is not None
    return found


@pytest.mark.parametrize(("family", "expected"), RENDERED.items())
def test_hole_is_marked_up_as_the_family_was_trained(family: str, expected: str) -> None:
    """The exact prompt of each family, and its own stop strings."""
    assert fim.render(template(family), HOLE) == expected
    assert template(family).stop
    assert fim.tokens_in(expected, template(family))
    assert not fim.tokens_in("before", template(family))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "qwen2.5-coder",
            "<|repo_name|>repository\n<|file_sep|>a.py\nA\n<|file_sep|>b.py\nB\n<|file_sep|>current\n"
            "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>",
        ),
        (
            "starcoder2",  # the paper's own line, section 5.1
            "<repo_name>repository<file_sep>a.py\nA\n<file_sep>b.py\nB\n<file_sep><fim_prefix>current\n"
            "before<fim_suffix>after<fim_middle>",
        ),
        (
            "granite-code",
            "<reponame>repository\n<filename>a.py\nA\n<filename>b.py\nB\n<filename>current\n"
            "<fim_prefix>before<fim_suffix>after<fim_middle>",
        ),
        ("deepseek-coder", "<｜fim▁begin｜>#a.py\nA\n#b.py\nB\n#current\nbefore<｜fim▁hole｜>after<｜fim▁end｜>"),
        ("codestral", "[SUFFIX]after[PREFIX]+++++ a.py\nA\n+++++ b.py\nB\n+++++ current\nbefore"),
        ("codellama", "a.py\nA\n\nb.py\nB\n\n<PRE> before <SUF>after <MID>"),
    ],
)
def test_other_files_come_in_the_familys_repository_form(family: str, expected: str) -> None:
    """Families without one get the files as plain text before the hole."""
    assert fim.render(template(family), fim.Hole("before", "after", FILES)) == expected


@pytest.mark.parametrize("budget", [16, 40, 100, 1000])
def test_prompt_is_trimmed_to_the_budget_on_line_boundaries(budget: int) -> None:
    """The end of the prefix and the start of the suffix stay; files go first, the oldest before the newest."""
    prefix = "".join(f"line {number} before\n" for number in range(60)) + "    return "
    suffix = "".join(f"line {number} after\n" for number in range(60))
    fitted = fim.fit(fim.Hole(prefix, suffix, FILES), budget)
    size = len((fitted.prefix + fitted.suffix).encode())
    assert size <= budget * fim.BYTES_PER_TOKEN
    assert prefix.endswith(fitted.prefix)
    assert suffix.startswith(fitted.suffix)
    assert fitted.prefix == prefix or fitted.prefix.startswith(("line", "    return "))
    assert fitted.suffix == suffix or fitted.suffix.endswith("\n") or len(fitted.suffix) < 15
    assert fitted.files == (FILES if budget == 1000 else ())


def test_long_line_and_wide_characters_are_cut_without_breaking_them() -> None:
    """A minified file is one line; a cut in the middle of a character would be garbage."""
    assert fim.keep_end("é" * 100, 9) == "é" * 4
    assert fim.keep_start("é" * 100, 9) == "é" * 4
    assert fim.keep_end("abc", 0) == ""


def test_newest_files_stay_when_not_all_fit() -> None:
    """Editors send the most recent last."""
    many = tuple(fim.File(f"{number}.py", "x" * 200) for number in range(10))
    kept = fim.fit(fim.Hole("a", "b", many), 200).files
    assert kept == many[-len(kept) :]
    assert 0 < len(kept) < 10


def test_budget_leaves_room_for_the_answer() -> None:
    """Context minus answer; a greedy answer may take half at most."""
    assert fim.budget_tokens(None, 5) is None
    assert fim.budget_tokens(1000, 100) == 884
    assert fim.budget_tokens(1000, 5000) == 484


def test_response_fields_become_flat_keys() -> None:
    """llama.vim asks for paths and reads them as keys."""
    assert pick({"content": "x", "timings": {"n": 1}}, ("content", "timings/n", "nope/x")) == {
        "content": "x",
        "timings/n": 1,
    }


def data_url(width: int = 100, height: int = 50, kind: str = "PNG") -> str:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(out, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(out.getvalue()).decode()


def raw(*parts: dict[str, Any]) -> bytes:
    return json.dumps([{"role": "user", "content": list(parts)}]).encode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "U"}},
        {"type": "image_url", "image_url": "U"},
        {"image_url": {"url": "U"}},
        {"type": "input_image", "image_url": "U"},
        {"type": "video_url", "video_url": {"url": "U"}},
        {"type": "audio_url", "audio_url": {"url": "U"}},
        {"type": "input_file", "file_url": "U"},
        {"type": "image", "source": {"type": "url", "url": "U"}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "U"}}]},
    ],
)
@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/x", "file:///etc/passwd", "https://user@ok.example/x", "ftp://ok.example"]
)
def test_every_way_to_name_a_url_is_found_and_refused(part: dict[str, Any], url: str) -> None:
    """Whatever an engine would fetch, in every dialect and nesting."""
    found = images.find(raw(json.loads(json.dumps(part).replace('"U"', json.dumps(url)))))
    assert found is not None
    with pytest.raises(Fault, match="not allowed"):
        images.check(found, Images(), ("ok.example",))


def test_escaped_field_names_do_not_slip_by() -> None:
    """JSON allows them; an engine would understand them."""
    text = b'[{"role":"user","content":[{"\\u0069mage_url":{"\\u0075rl":"http://10.0.0.1/"}}]}]'
    found = images.find(text)
    assert found is not None
    with pytest.raises(Fault):
        images.check(found, Images(), ())


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://ok.example/a.jpg", True),
        ("https://OK.example./a.jpg", True),
        ("https://ok.example.evil.org/a.jpg", False),
        ("https://ok.example@evil.org/a.jpg", False),
        ("http://127.0.0.1/a.jpg", False),
        ("http://192.168.7.7/a.jpg", True),
        ("http://[::1]/a.jpg", False),
        ("http://[broken/a.jpg", False),
        ("//ok.example/a.jpg", False),
    ],
)
def test_allow_list_names_hosts_exactly(url: str, allowed: bool) -> None:
    """No suffixes, no user parts; a private address only if it is itself on the list."""
    hosts = ("ok.example", "192.168.7.7")
    if allowed:
        images.check_url(url, hosts)
    else:
        with pytest.raises(Fault):
            images.check_url(url, hosts)


def test_text_that_talks_about_images_is_no_image() -> None:
    """Only fields count, not words."""
    assert images.find(raw({"type": "text", "text": 'write "image_url": {"url": "http://x"}'})) is None
    assert images.find(b'[{"role":"user","content":"image_url"}]') is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_large_images_are_scaled_down_and_others_keep_their_bytes(kind: str) -> None:
    """The longer side is max_side afterwards; the aspect stays."""
    small, large = data_url(64, 32, kind), data_url(1000, 500, kind)
    text = raw({"type": "image_url", "image_url": {"url": small}}, {"type": "image_url", "image_url": {"url": large}})
    found = images.find(text)
    assert found is not None
    assert images.shrink(found, 64) == 1
    parts = json.loads(found.join())[0]["content"]
    assert parts[0]["image_url"]["url"] == small
    again = base64.b64decode(parts[1]["image_url"]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(again)).size == (64, 32)


def test_anthropic_base64_source_is_scaled_in_place() -> None:
    """The media type follows the bytes."""
    source = {"type": "base64", "media_type": "image/png", "data": data_url(300, 300).partition(",")[2]}
    found = images.find(raw({"type": "image", "source": source}))
    assert found is not None
    assert images.shrink(found, 100) == 1
    told = json.loads(found.join())[0]["content"][0]["source"]
    assert Image.open(io.BytesIO(base64.b64decode(told["data"]))).size == (100, 100)


@pytest.mark.parametrize("data", ["data:image/png;base64,AAAA", "data:image/png;base64,!!!", "data:image/png;base64,"])
def test_broken_image_is_a_400(data: str) -> None:
    """Never a 500, whatever the bytes are."""
    found = images.find(raw({"type": "image_url", "image_url": {"url": data}}))
    assert found is not None
    with pytest.raises(Fault) as caught:
        images.shrink(found, 10)
    assert caught.value.status == 400


SIZES = ((1280, 720), (854, 480), (640, 360), (320, 180), (64, 64), (4000, 3000), (8000, 6000), (30, 3000), (10, 10))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen3-vl", (880, 405, 220, 66, 64, 11750, 16170, 94, 64)),
        ("qwen2.5-vl", (1196, 510, 299, 66, 4, 15301, 16170, 107, 4)),
    ],
)
def test_image_tokens_are_those_of_the_models_own_processor(family: str, expected: tuple[int, ...]) -> None:
    """The numbers are what transformers' ``smart_resize`` gives with the models' limits; two marks come on top."""
    rule = recipes.get(family).image_tokens
    assert rule is not None
    assert tuple(images.image_tokens(*size, rule) - 2 for size in SIZES) == expected


def test_image_tokens_follow_the_recipes_formula() -> None:
    """Gemma: always the same number. Without a formula none are counted."""
    fixed = recipes.get("gemma").image_tokens
    assert fixed is not None
    assert images.image_tokens(64, 64, fixed) == images.image_tokens(4000, 4000, fixed) == 258
    found = images.find(raw({"type": "image_url", "image_url": {"url": data_url(64, 64)}}))
    assert found is not None
    assert images.tokens(found, ImageTokens(cell=32)) == 4
    assert images.tokens(found, None) == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('"a"', ["a"]),
        ('["a", "b"]', ["a", "b"]),
        ("[1, 2]", [[1, 2]]),
        ("[[1, 2], [3]]", [[1, 2], [3]]),
    ],
)
def test_inputs_are_read_in_all_their_forms(given: str, expected: object) -> None:
    """A string, strings, a token array, token arrays."""
    assert embeddings.read_inputs(json.loads(given)) == expected


@pytest.mark.parametrize("given", ["null", '""', "[]", "{}", "5", '["a", 1]', "[[]]", "[true]", "[[1], 2]", "[-1]"])
def test_other_inputs_are_a_400(given: str) -> None:
    """With the field's name."""
    with pytest.raises(Fault) as caught:
        embeddings.read_inputs(json.loads(given))
    assert (caught.value.status, caught.value.param) == (400, "input")


def test_vectors_survive_packing() -> None:
    """Little-endian float32, as the SDKs decode it."""
    assert embeddings.unpack(embeddings.pack([0.5, -1.0])) == [0.5, -1.0]
    assert base64.b64decode(embeddings.pack([1.0])) == b"\x00\x00\x80?"


def test_token_ids_become_the_text_they_stand_for() -> None:
    """cl100k_base, special tokens left out; an id beyond the vocabulary is refused."""
    assert cl100k.decode([15339, 1917, 100257]) == "hello world"
    assert cl100k.decode([27384]) != ""
    with pytest.raises(Fault):
        cl100k.decode([199_999])


def test_rerank_reads_texts_and_objects_and_speaks_both_dialects() -> None:
    """Jina's dialect gives documents back, Cohere's has meta; both are sorted and cut here."""
    documents = rerank.read_documents(["a", {"text": "b"}])
    assert documents == ["a", "b"]
    engine = json.dumps(
        {"results": [{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": 0.9}], "usage": {}}
    ).encode()
    jina = json.loads(rerank.RerankReply("s", "a", "q", documents=documents, with_documents=True).body(engine))
    cohere = json.loads(rerank.RerankReply("s", "a", "q", documents=documents, cohere=True, top_n=1).body(engine))
    assert [row["index"] for row in jina["results"]] == [1, 0]
    assert jina["results"][0]["document"] == {"text": "b"}
    assert (len(cohere["results"]), cohere["meta"]["api_version"]["version"]) == (1, "2")
    with pytest.raises(Fault):
        rerank.read_documents(["a", 5])
