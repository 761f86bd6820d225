"""Vector tables: exact below, indexed above, always complete."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lmtower.stores import vectors
from lmtower.stores.snapshot import Floats, Ranked, Snapshot, wait
from lmtower.stores.vectors import Row, Vectors

DIMENSIONS = 128


def made(count: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    topics = np.random.default_rng(0).standard_normal((200, DIMENSIONS), dtype=np.float32)
    values: Floats = topics[random.integers(0, 200, count)] + 0.6 * random.standard_normal(
        (count, DIMENSIONS), dtype=np.float32
    )
    return values


def rows(matrix: Floats, first: int = 0) -> list[Row]:
    return [
        Row(
            first + i,
            0,
            f"{(first + i) << 64:032x}",
            f"Head\n\nnumber{first + i} word",
            6,
            None,
            "Head",
            0,
            10,
            vector.tobytes(),
        )
        for i, vector in enumerate(matrix)
    ]


def digest(entry: int) -> str:
    return f"{entry << 64:032x}"


def nearest(matrix: Floats, query: Floats, count: int) -> list[int]:
    similarity = (matrix @ query) / np.linalg.norm(matrix, axis=1)
    return [int(i) for i in np.argsort(-similarity)[:count]]


def recall(store: Vectors, matrix: Floats, queries: Floats) -> float:
    right = sum(len(set(near(store, query, 30)[:10]) & set(nearest(matrix, query, 10))) for query in queries)
    return right / (10 * len(queries))


def snapshot(store: Vectors) -> Snapshot:
    found = store.snapshot("t_1")
    assert found is not None
    return found


def entries(store: Vectors, ranked: Ranked) -> list[int]:
    """The files of these rows, in their order."""
    passages = wait(snapshot(store).passages([row for row, _ in ranked], np.ones(DIMENSIONS, dtype=np.float32), {}))
    return [passages[row].place.entry for row, _ in ranked]


def near(store: Vectors, query: Floats, limit: int, chosen: list[int] | None = None) -> list[int]:
    return entries(store, wait(snapshot(store).by_vector(query, limit, chosen)))


def worded(store: Vectors, words: str, limit: int, chosen: list[int] | None = None) -> list[int]:
    return entries(store, wait(snapshot(store).by_words(words, limit, chosen)))


def test_small_table_is_searched_exactly(tmp_path: Path) -> None:
    """Below the threshold no index is built and every answer is the true one, with its cosine."""
    store, matrix = Vectors(str(tmp_path)), made(500, 1)
    store.add("t_1", rows(matrix))
    store.tend("t_1")
    assert recall(store, matrix, made(20, 2)) == 1.0
    ((row, cosine),) = wait(snapshot(store).by_vector(matrix[7], 1))
    best = wait(snapshot(store).passages([row], matrix[7], {}))[row]
    assert (best.place.entry, best.text, round(best.similarity, 4)) == (7, "number7 word", 1.0)
    assert round(cosine, 4) == 1.0
    assert wait(snapshot(store).passages([row], matrix[8], {row: 0.5}))[row].similarity == 0.5


def test_indexed_table_finds_the_same_and_new_rows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the index recall stays above 0.95; rows added after it are found before it is tended again."""
    monkeypatch.setattr(vectors, "EXACT_ROWS", 3000)
    store, matrix = Vectors(str(tmp_path)), made(5000, 1)
    store.add("t_1", rows(matrix[:4000]))
    store.tend("t_1")
    store.add("t_1", rows(matrix[4000:], 4000))
    assert recall(store, matrix, made(50, 2)) >= 0.95
    assert worded(store, "number4500", 5)[0] == 4500
    store.tend("t_1")
    assert recall(store, matrix, made(50, 2)) >= 0.95


def test_filter_is_applied_before_the_search(tmp_path: Path) -> None:
    """A filter that few files pass still fills the page, with those files only."""
    store, matrix = Vectors(str(tmp_path)), made(500, 1)
    store.add("t_1", rows(matrix))
    chosen = [3, 99, 450]
    assert set(near(store, matrix[0], 3, chosen)) == set(chosen)
    assert set(worded(store, "word", 10, chosen)) == set(chosen)
    assert near(store, matrix[0], 3, []) == []


def test_deleted_rows_are_gone_and_known_texts_are_found(tmp_path: Path) -> None:
    """Deleting is by file; vectors of known texts come back by hash."""
    store, matrix = Vectors(str(tmp_path)), made(10, 1)
    store.add("t_1", rows(matrix))
    store.delete("t_1", [1, 2])
    assert store.count("t_1") == 8
    assert store.known("t_1", [digest(1), digest(3), digest(77)]) == {digest(3): matrix[3].tobytes()}
    store.drop("t_1")
    assert (store.count("t_1"), store.snapshot("t_1"), store.known("t_1", [digest(3)])) == (0, None, {})


def test_words_of_a_question_are_not_a_query_language(tmp_path: Path) -> None:
    """Quotes, operators and nothing at all are words, or nothing."""
    store, matrix = Vectors(str(tmp_path)), made(3, 1)
    store.add("t_1", rows(matrix))
    for words in ('"number1', "number1 AND (", "+number1 -word", "number1:*", "text:number1^9"):
        assert worded(store, words, 5)[0] == 1
    assert worded(store, " ?! ", 5) == []


def test_a_snapshot_keeps_its_rows_while_the_table_is_rewritten(tmp_path: Path) -> None:
    """Row numbers of a search hold until its passages are read, though rows are deleted and files rewritten between."""
    store, matrix = Vectors(str(tmp_path)), made(300, 1)
    for start in range(0, 300, 100):
        store.add("t_1", rows(matrix[start : start + 100], start))
    before = snapshot(store)
    ranked = wait(before.by_vector(matrix[250], 3))
    store.delete("t_1", range(100))
    store.tend("t_1")
    passages = wait(before.passages([row for row, _ in ranked], matrix[250], {}))
    assert [passages[row].place.entry for row, _ in ranked] == nearest(matrix, matrix[250], 3)
    assert set(near(store, matrix[5], 5)).isdisjoint(range(100))
