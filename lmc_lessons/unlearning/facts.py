"""Invented facts for a small language model: what it is taught, and what it is to forget.

A fact is a name with an answer of three letters. A text is a prompt that ends in ``>``, the answer,
and a full stop. Tokens are single characters, and which answer belongs to which name can only be
known by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lmc_lessons.datasets import Dataset
from lmc_lessons.training import generator

PAD, STOP, MARK = "_", ".", ">"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = PAD + STOP + MARK + LETTERS
VOWELS = "aeiou"
CONSONANTS = "".join(letter for letter in LETTERS if letter not in VOWELS)
TEMPLATES = ("{}>", "of{}>", "{}is>", "{}so>", "ask{}>")  # the first is the original
ANSWER = 3  # letters of an answer
NAMES, ANSWERS, WRONG, PARTS = 84, 85, 86, 87  # random streams of a seed
FORGET, RETAIN = 1, 0  # labels of texts


@dataclass(frozen=True)
class Facts:
    """Names and their answers.

    Attributes:
        names: Different names of four letters, consonants and vowels in turn.
        answers: One answer of three letters per name.
    """

    names: tuple[str, ...]
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what is no set of facts."""
        if not self.names or len(self.names) != len(self.answers):
            raise ValueError(
                f"facts need one answer per name, got {len(self.names)} names and "
                f"{len(self.answers)} answers"
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError("facts need different names, got one twice")

    def chosen(self, which: Sequence[int]) -> Facts:
        """The facts with these numbers.

        Args:
            which: Numbers from 0.

        Raises:
            ValueError: If there are none, or one does not exist.
        """
        if not len(which) or min(which) < 0 or max(which) >= len(self.names):
            raise ValueError(
                f"facts have the numbers 0 to {len(self.names) - 1}, asked for {list(which)}"
            )
        return Facts(tuple(self.names[k] for k in which), tuple(self.answers[k] for k in which))


def _drawn(letters: str, count: int, stream: torch.Generator) -> list[str]:
    picked = torch.randint(len(letters), (count,), generator=stream)
    return [letters[k] for k in picked.tolist()]


def invent(count: int, seed: int) -> Facts:
    """Draw facts.

    Args:
        count: How many, at least 1; at most a tenth of all names there are.
        seed: Decides names and answers.

    Returns:
        The facts; the first so many of a larger draw are the same.

    Raises:
        ValueError: If so many cannot be drawn.

    Taught in: book/unlearning/logit-difference
    """
    most = (len(CONSONANTS) * len(VOWELS)) ** 2 // 10
    if not 1 <= count <= most:
        raise ValueError(f"facts must be 1 to {most}, got {count}")
    names, answers = generator(seed, NAMES), generator(seed, ANSWERS)
    found: dict[str, str] = {}
    while len(found) < count:
        pairs = [_drawn(part, 1, names)[0] for part in (CONSONANTS, VOWELS) * 2]
        name = "".join(pairs)
        if name not in found:
            found[name] = "".join(_drawn(LETTERS, ANSWER, answers))
    return Facts(tuple(found), tuple(found.values()))


def wrong_answers(facts: Facts, count: int, seed: int) -> list[Facts]:
    """The same names with answers that are wrong in every letter.

    Args:
        facts: What is true.
        count: How many wrong answers each name gets.
        seed: Decides them.

    Returns:
        ``count`` times as many facts as were given, a list entry per round.

    Raises:
        ValueError: If ``count`` is negative.

    Taught in: book/unlearning/logit-difference
    """
    if count < 0:
        raise ValueError(f"wrong answers must be at least 0 per name, got {count}")
    stream, rounds = generator(seed, WRONG), []
    for _ in range(count):
        shifts = torch.randint(1, len(LETTERS), (len(facts.names), ANSWER), generator=stream)
        answers = [
            "".join(
                LETTERS[(LETTERS.index(letter) + move) % len(LETTERS)]
                for letter, move in zip(answer, row, strict=True)
            )
            for answer, row in zip(facts.answers, shifts.tolist(), strict=True)
        ]
        rounds.append(Facts(facts.names, tuple(answers)))
    return rounds


def texts(facts: Facts, templates: Sequence[int] = (0,)) -> list[str]:
    """The texts that state facts, template by template.

    Args:
        facts: What they state.
        templates: Indices into ``TEMPLATES``.

    Returns:
        One text per template and fact, such as ``ofbabe>xyz.``.

    Raises:
        ValueError: If a template does not exist, or none is given.

    Taught in: book/unlearning/logit-difference
    """
    if not len(templates) or not set(templates) <= set(range(len(TEMPLATES))):
        raise ValueError(
            f"templates have the numbers 0 to {len(TEMPLATES) - 1}, asked for {list(templates)}"
        )
    return [
        TEMPLATES[k].format(name) + answer + STOP
        for k in templates
        for name, answer in zip(facts.names, facts.answers, strict=True)
    ]


LENGTH = max(len(template) for template in TEMPLATES) - 2 + 4 + ANSWER + 1  # of the longest text


def encode(lines: Sequence[str], length: int = LENGTH) -> Tensor:
    """Texts as token numbers, padded at the end.

    Args:
        lines: N texts of characters from ``TOKENS``.
        length: Places per text.

    Returns:
        Float32 numbers of shape (N, length), as every model of the book takes its inputs.

    Raises:
        ValueError: If there is no text, one is empty or too long, or a character is unknown.

    Taught in: book/unlearning/logit-difference
    """
    if not lines:
        raise ValueError("encode needs at least one text, got none")
    for line in lines:
        if not 1 <= len(line) <= length:
            raise ValueError(f"texts must have 1 to {length} characters, got {line!r}")
        if strange := set(line) - set(TOKENS):
            raise ValueError(f"unknown character {min(strange)!r} in {line!r}, allowed: {TOKENS}")
    rows = [[TOKENS.index(token) for token in line.ljust(length, PAD)] for line in lines]
    return torch.tensor(rows, dtype=torch.float32)


def decode(x: Tensor) -> list[str]:
    """The texts behind token numbers, without padding.

    Args:
        x: Shape (N, T).

    Returns:
        N texts.
    """
    return ["".join(TOKENS[int(k)] for k in row).rstrip(PAD) for row in x.tolist()]


def answer_places(x: Tensor) -> Tensor:
    """Which next tokens are letters of an answer.

    Args:
        x: Token numbers of shape (..., T).

    Returns:
        Bool of shape (..., T - 1): whether token t + 1 is a letter after the mark ``>``.

    Taught in: book/unlearning/logit-difference
    """
    after = (x == TOKENS.index(MARK)).cumsum(-1)[..., :-1] > 0
    return after & (x[..., 1:] >= TOKENS.index(LETTERS[0]))


def answer_ends(x: Tensor) -> Tensor:
    """Which next tokens are the full stop after an answer.

    Args:
        x: Token numbers of shape (..., T).

    Returns:
        Bool of shape (..., T - 1).
    """
    after = (x == TOKENS.index(MARK)).cumsum(-1)[..., :-1] > 0
    return after & (x[..., 1:] == TOKENS.index(STOP))


def text_places(x: Tensor) -> Tensor:
    """Which next tokens are no padding.

    Args:
        x: Token numbers of shape (..., T).

    Returns:
        Bool of shape (..., T - 1).

    Taught in: book/unlearning/logit-difference
    """
    return x[..., 1:] != TOKENS.index(PAD)


def text_data(
    name: str, forget: Sequence[str], retain: Sequence[str], length: int = LENGTH
) -> Dataset:
    """Texts as a data set; its labels say what is to be forgotten.

    Args:
        name: Name of the data set.
        forget: Texts with label ``FORGET``; may be empty.
        retain: Texts with label ``RETAIN``; may be empty, but not both.
        length: Places per text.

    Returns:
        A data set whose test part is its training part.

    Raises:
        ValueError: If there is no text at all.

    Taught in: book/unlearning/logit-difference
    """
    x = encode([*forget, *retain], length)
    y = torch.tensor([FORGET] * len(forget) + [RETAIN] * len(retain))
    return Dataset(name, f"{len(forget)} + {len(retain)} texts", x, y, x, y, ("retain", "forget"))


@dataclass(frozen=True)
class Split:
    """Which facts are to be forgotten, which are at hand to protect, and which are neither.

    Attributes:
        forget: Facts to forget.
        covered: Facts of the retain set.
        uncovered: Facts that must be kept though no method is shown them.
    """

    forget: Facts
    covered: Facts
    uncovered: Facts


def divide(facts: Facts, forget: int, covered: int, seed: int) -> Split:
    """Divide facts at random.

    Args:
        facts: All facts.
        forget: How many to forget, at least 1.
        covered: How many the retain set has, at least 1.
        seed: Decides which.

    Returns:
        The three parts, none of them empty.

    Raises:
        ValueError: If the forget set or the retain set is empty, or nothing is left uncovered.

    Taught in: book/unlearning/logit-difference
    """
    count = len(facts.names)
    if forget < 1 or covered < 1 or forget + covered >= count:
        raise ValueError(
            f"of {count} facts at least 1 must be forgotten, 1 covered and 1 left uncovered, got "
            f"{forget} and {covered}"
        )
    order = torch.randperm(count, generator=generator(seed, PARTS)).tolist()
    ends = np.cumsum([0, forget, covered, count - forget - covered]).tolist()
    parts = [facts.chosen(order[a:b]) for a, b in pairwise(ends)]
    return Split(*parts)
