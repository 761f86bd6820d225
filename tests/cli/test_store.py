"""``lmtower store``: folders in, hits and answers out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmtower.cli import main
from tests.stores.conftest import SECRET, Running, gateway, launch, running  # noqa: F401 - fixtures
from tests.stores.front import Front

Lmtower = Callable[..., tuple[int, str, str]]


@pytest.fixture
def front(running: Running) -> Iterator[Front]:  # noqa: F811
    front = Front(running.url, SECRET, {"sk-lmt-ada": "ada", "sk-lmt-stores": "stores"}, "Whales sing [1]. So it is.")
    yield front
    front.stop()


@pytest.fixture
def lmtower(front: Front, running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Lmtower:  # noqa: F811
    """Run a command on a tower whose store service and gateway are the fixtures."""
    (tmp_path / "internal.key").write_text(SECRET + "\n")
    (tmp_path / "stores.key").write_text("sk-lmt-stores\n")
    listen, stores = front.url.removeprefix("http://"), running.url.removeprefix("http://")
    (tmp_path / "tower.yaml").write_text(
        f"gateway: {{listen: '{listen}'}}\nstores: {{listen: '{stores}'}}\n"
        "engines: {embed: {url: 'http://127.0.0.1:9', model: m}}\n"
        "personas: {embed-document: {engine: embed}, fast: {engine: embed}}\n"
    )

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(["-c", str(tmp_path / "tower.yaml"), "--data-dir", str(tmp_path), "store", *argv])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sea").mkdir(parents=True)
    (folder / "sea" / "whales.md").write_text("# Whales\n\nWhales sing songs in the deep sea.")
    (folder / "cats.txt").write_text("Cats purr on the sofa.")
    (folder / ".hidden").write_text("never read")
    (folder / "broken.pdf").write_text("not a pdf")
    return folder


def test_add_search_sync_and_remove(lmtower: Lmtower, folder: Path) -> None:
    """A folder goes in, is found with its place, follows changes on disk, and goes away."""
    assert lmtower("create", "zoo")[0] == 0
    code, out, err = lmtower("add", "zoo", str(folder))
    assert (code, out) == (0, "zoo: 2 files, 0.6 kB; 2 added, 0 changed, 0 unchanged, 0 removed, 1 failed.\n")
    assert "failed: broken.pdf: The file is named .pdf, but it is not one." in err
    code, out, _ = lmtower("search", "zoo", "songs of whales", "-n", "1")
    assert (code, out.splitlines()[0].split("  ")[0]) == (0, "1. sea/whales.md, Whales")
    (folder / "cats.txt").write_text("Cats sleep all day.")
    (folder / "broken.pdf").unlink()
    (folder / "sea" / "whales.md").unlink()
    (folder / "dogs.txt").write_text("Dogs bark.")
    code, out, _ = lmtower("sync", "zoo", str(folder))
    assert out == "zoo: 2 files, 0.5 kB; 1 added, 1 changed, 0 unchanged, 2 removed.\n"
    assert (
        lmtower("sync", "zoo", str(folder))[1] == "zoo: 2 files, 0.5 kB; 0 added, 0 changed, 2 unchanged, 0 removed.\n"
    )
    assert {hit["filename"] for hit in json.loads(lmtower("search", "zoo", "cats", "--json")[1])["data"]} == {
        "cats.txt",
        "dogs.txt",
    }
    assert lmtower("rm", "zoo")[1] == "zoo: deleted with 2 files.\n"
    assert lmtower("list", "--json")[1] == "[]\n"


def test_a_file_that_is_refused_at_upload_fails_alone(lmtower: Lmtower, folder: Path) -> None:
    """A file that is too large, or has a name that no store takes, is told with its reason; the others go in."""
    (folder / "huge.txt").write_bytes(b"x" * (2 * 1024**2))
    (folder / "C:name.txt").write_text("text")
    lmtower("create", "zoo")
    code, out, err = lmtower("add", "zoo", str(folder))
    assert (code, out) == (0, "zoo: 2 files, 0.6 kB; 2 added, 0 changed, 0 unchanged, 0 removed, 3 failed.\n")
    assert "failed: huge.txt: " in err
    assert "larger than 1,048,576 bytes" in err
    assert "failed: C:name.txt: " in err
    again = lmtower("add", "zoo", str(folder))[1]
    assert again == "zoo: 2 files, 0.6 kB; 0 added, 0 changed, 2 unchanged, 0 removed, 3 failed.\n"
    failed = json.loads(lmtower("add", "zoo", str(folder), "--json")[1])["failed"]
    assert sorted(one["attributes"]["path"] for one in failed) == ["C:name.txt", "broken.pdf", "huge.txt"]


def test_patterns_name_files(lmtower: Lmtower, folder: Path) -> None:
    """A quoted pattern adds what it matches; one that matches nothing is refused before anything is done."""
    lmtower("create", "zoo")
    code, out, _ = lmtower("add", "zoo", f"{folder}/**/*.md", f"{folder}/*.txt")
    assert (code, out) == (0, "zoo: 2 files, 0.6 kB; 2 added, 0 changed, 0 unchanged, 0 removed.\n")
    code, _, err = lmtower("add", "zoo", f"{folder}/*.rst")
    assert code == 2
    assert "nothing that matches" in err


def test_links_are_not_followed_out_of_a_folder(lmtower: Lmtower, folder: Path, tmp_path: Path) -> None:
    """What a link in a folder points to, inside or outside, is not put in; a loop of links ends."""
    (tmp_path / "secret.txt").write_text("The secret is blue.")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "loop").symlink_to(folder)
    lmtower("create", "zoo")
    lmtower("sync", "zoo", str(folder))
    hits = json.loads(lmtower("search", "zoo", "secret blue", "--json")[1])["data"]
    assert {hit["filename"] for hit in hits} == {"cats.txt", "sea/whales.md"}


def test_ask_streams_an_answer_with_numbered_sources(lmtower: Lmtower, folder: Path, front: Front) -> None:
    """The persona gets numbered passages and the question; its citations are listed with their files."""
    lmtower("create", "zoo")
    lmtower("add", "zoo", str(folder / "sea"))
    code, out, _ = lmtower("ask", "zoo", "--persona", "fast", "Who sings?")
    assert (code, out) == (0, "Whales sing [1]. So it is. \n\n[1] whales.md, Whales\n")
    assert front.prompts[0]["model"] == "fast"
    prompt = front.prompts[0]["messages"][0]["content"]
    assert '<passage number="1" source="whales.md, Whales">' in prompt
    assert prompt.endswith("Question: Who sings?")


def test_ask_says_so_when_nothing_is_found(lmtower: Lmtower, front: Front) -> None:
    """An empty store is not asked about by guessing."""
    lmtower("create", "empty")
    assert lmtower("ask", "empty", "--persona", "fast", "Who?")[1] == "Nothing about this was found in store 'empty'.\n"
    assert front.prompts == []


def test_a_client_elsewhere_works_through_the_gateway(lmtower: Lmtower, folder: Path, front: Front) -> None:
    """With a URL and a key the commands act as that client, who does not see the operator's stores."""
    lmtower("create", "private")
    there = ("--url", f"{front.url}/v1", "--key", "sk-lmt-ada")
    assert lmtower("create", "mine", *there)[0] == 0
    assert lmtower("add", "mine", str(folder / "cats.txt"), *there)[0] == 0
    assert [store["name"] for store in json.loads(lmtower("list", "--json", *there)[1])] == ["mine"]
    assert lmtower("ask", "mine", "--persona", "fast", "Cats?", *there)[0] == 0


def test_unknown_store_names_those_there_are(lmtower: Lmtower) -> None:
    """The error says which stores exist and how to make one."""
    lmtower("create", "zoo")
    code, _, err = lmtower("search", "zo", "x")
    assert (code, err) == (1, "no store 'zo'. There are: 'zoo'. Make it: lmtower store create zo\n")


def test_without_a_tower_the_command_says_what_to_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data folder without a tower is told as such."""
    assert main(["--data-dir", str(tmp_path), "store", "list"]) == 1
    assert "lmtower up" in capsys.readouterr().err
