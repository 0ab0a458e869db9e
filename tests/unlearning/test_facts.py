"""Invented facts: what is drawn, how it becomes tokens, and what is refused."""

from __future__ import annotations

import pytest
import torch

from lmc_lessons.unlearning import facts as lesson
from lmc_lessons.unlearning.facts import (
    FORGET,
    LENGTH,
    RETAIN,
    TEMPLATES,
    TOKENS,
    Facts,
    answer_ends,
    answer_places,
    decode,
    divide,
    encode,
    invent,
    text_data,
    text_places,
    texts,
    wrong_answers,
)


def test_facts_are_decided_by_the_seed_and_grow() -> None:
    few, many = invent(5, 3), invent(50, 3)
    assert few.names == many.names[:5]
    assert few.answers == many.answers[:5]
    assert invent(5, 4).names != few.names
    assert len(set(many.names)) == 50
    for name, answer in zip(many.names, many.answers, strict=True):
        assert all(c in lesson.CONSONANTS for c in name[::2])
        assert all(c in lesson.VOWELS for c in name[1::2])
        assert len(answer) == 3
        assert set(answer) <= set(lesson.LETTERS)


def test_wrong_answers_are_wrong_in_every_letter() -> None:
    facts = invent(30, 0)
    rounds = wrong_answers(facts, 3, 0)
    assert len(rounds) == 3
    for found in rounds:
        assert found.names == facts.names
        for wrong, right in zip(found.answers, facts.answers, strict=True):
            assert all(a != b for a, b in zip(wrong, right, strict=True))
    assert rounds[0] != rounds[1]
    assert wrong_answers(facts, 0, 0) == []


def test_texts_are_written_and_read_back() -> None:
    facts = Facts(("babe", "dido"), ("xyz", "abc"))
    lines = texts(facts, range(len(TEMPLATES)))
    assert lines[:4] == ["babe>xyz.", "dido>abc.", "ofbabe>xyz.", "ofdido>abc."]
    assert len(set(lines)) == 2 * len(TEMPLATES)
    assert max(map(len, lines)) == LENGTH
    x = encode(lines)
    assert (x.shape, x.dtype) == ((len(lines), LENGTH), torch.float32)
    assert decode(x) == lines


def test_places_are_those_of_the_letters() -> None:
    x = encode(["ofbabe>xyz.", "dido>abc."])
    told = [[TOKENS[int(t)] for t in row[1:]] for row in x]
    for row, chosen, ends, real in zip(
        told, answer_places(x), answer_ends(x), text_places(x), strict=True
    ):
        picked = "".join(t for t, yes in zip(row, chosen, strict=True) if yes)
        assert picked in ("xyz", "abc")
        assert [t for t, yes in zip(row, ends, strict=True) if yes] == ["."]
        assert [t for t, yes in zip(row, real, strict=True) if not yes] == ["_"] * row.count("_")
    stacked = torch.stack([x, x.flip(0)])
    assert torch.equal(answer_places(stacked)[1], answer_places(x).flip(0))


def test_a_division_uses_every_fact_once() -> None:
    facts = invent(20, 1)
    split = divide(facts, 3, 5, 1)
    parts = (split.forget, split.covered, split.uncovered)
    assert [len(part.names) for part in parts] == [3, 5, 12]
    pairs = {pair for p in parts for pair in zip(p.names, p.answers, strict=True)}
    assert pairs == set(zip(facts.names, facts.answers, strict=True))
    assert divide(facts, 3, 5, 2) != split


def test_labels_say_what_is_to_be_forgotten() -> None:
    data = text_data("some", ["babe>xyz."], ["dido>abc.", "ofdido>abc."])
    assert data.train_y.tolist() == [FORGET, RETAIN, RETAIN]
    assert decode(data.train_x)[0] == "babe>xyz."
    assert data.input_shape == (LENGTH,)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda: invent(0, 0), "facts must be 1 to 1102, got 0"),
        (lambda: invent(5000, 0), "facts must be 1 to 1102, got 5000"),
        (lambda: Facts(("a", "b"), ("x",)), "one answer per name, got 2 names and 1 answers"),
        (lambda: Facts((), ()), "one answer per name, got 0 names"),
        (lambda: Facts(("a", "a"), ("x", "y")), "different names"),
        (lambda: invent(3, 0).chosen([3]), r"numbers 0 to 2, asked for \[3\]"),
        (lambda: invent(3, 0).chosen([]), r"numbers 0 to 2, asked for \[\]"),
        (lambda: wrong_answers(invent(3, 0), -1, 0), "at least 0 per name, got -1"),
        (lambda: texts(invent(3, 0), [9]), r"numbers 0 to 4, asked for \[9\]"),
        (lambda: texts(invent(3, 0), []), r"numbers 0 to 4, asked for \[\]"),
        (lambda: encode([]), "at least one text"),
        (lambda: encode(["a" * 40]), "1 to 12 characters"),
        (lambda: encode([""]), "1 to 12 characters"),
        (lambda: encode(["Ab"]), "unknown character 'A'"),
        (lambda: divide(invent(9, 0), 0, 2, 0), "at least 1 must be forgotten.*got 0 and 2"),
        (lambda: divide(invent(9, 0), 2, 0, 0), "1 covered.*got 2 and 0"),
        (lambda: divide(invent(9, 0), 4, 5, 0), "1 left uncovered, got 4 and 5"),
        (lambda: text_data("none", [], []), "at least one text"),
    ],
)
def test_bad_input_is_one_line(wrong: object, expected: str) -> None:
    assert callable(wrong)
    with pytest.raises(ValueError, match=expected) as caught:
        wrong()
    assert "\n" not in str(caught.value)
