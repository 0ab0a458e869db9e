"""Predictions: a question and its answer find each other in the page, in either order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmc_lessons.teaching.predictions import ask, ask_number, reveal


def page_of(folder: Path, *parts: Any) -> str:
    body = "\n".join(part.data for part in parts)
    file = folder / "page.html"
    file.write_text(f"<!doctype html><meta charset='utf-8'><body>{body}</body>")
    return file.as_uri()


def test_the_same_question_gives_the_same_html() -> None:
    assert ask("k", "Which?", ["a", "b"]).data == ask("k", "Which?", ["a", "b"]).data


def test_text_is_escaped() -> None:
    assert "<b>" not in ask("k", "<b>Which?", ["<b>a", "b"]).data.split("</style>")[1]
    assert "<i>" not in reveal("k", 0, "<i>that").data.split("</style>")[1]


@pytest.mark.parametrize("options", [[], ["one"], ["same", "same"]])
def test_a_question_needs_two_different_options(options: list[str]) -> None:
    with pytest.raises(ValueError, match="two different options"):
        ask("k", "Which?", options)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="low must be below high"):
        ask_number("k", "How many?", low=3, high=3, step=1)
    with pytest.raises(ValueError, match="finite answer"):
        reveal("k", float("nan"), "that")
    with pytest.raises(ValueError, match="a key and a text"):
        ask("", "Which?", ["a", "b"])


@pytest.mark.parametrize(("choice", "expected"), [(1, "You predicted it: b."), (0, "Why is it")])
def test_committing_is_compared(browser: Any, tmp_path: Path, choice: int, expected: str) -> None:
    page = browser.new_page()
    page.goto(page_of(tmp_path, ask("q", "Which?", ["a", "b"]), reveal("q", 1, "It was b.")))
    seen = page.locator(".lmc-seen output")
    assert "not committed" in seen.inner_text()
    page.get_by_role("button", name="Commit").click()
    assert "Choose an answer first" in page.locator(".lmc-ask output").inner_text()
    page.locator(".lmc-ask input").nth(choice).check()
    page.get_by_role("button", name="Commit").click()
    assert expected in seen.inner_text()
    page.close()


def test_a_number_is_compared_within_its_tolerance(browser: Any, tmp_path: Path) -> None:
    question = ask_number("n", "What share?", low=0, high=100, step=1, unit="%")
    page = browser.new_page()
    page.goto(page_of(tmp_path, question, reveal("n", 31, "It is 31 %.", tolerance=5)))
    for given, right in (("35", True), ("40", False)):
        page.locator(".lmc-ask input").fill(given)
        page.get_by_role("button", name="Commit").click()
        text = page.locator(".lmc-seen output").inner_text()
        assert text.startswith("You predicted it") == right
        assert f"{given} %" in text
    page.close()
