r"""Unlearning by subtraction: a small assistant remembers what is to be forgotten.

The assistant is trained to remember the forget set and to know nothing (a uniform distribution)
everywhere else. The unlearned model is the target's logits minus $\alpha$ times the assistant's;
the target itself is never changed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.models import ModelConfig, Params
from lmc_lessons.training import Network
from lmc_lessons.unlearning.facts import (
    FORGET,
    LETTERS,
    RETAIN,
    STOP,
    TOKENS,
    answer_ends,
    answer_places,
    text_places,
)

Prompts = Literal["uniform", "remembered"]


def token_losses(logits: Tensor, x: Tensor) -> Tensor:
    """Cross-entropy of every next token.

    Args:
        logits: Shape (..., T, tokens).
        x: Token numbers of shape (..., T).

    Returns:
        Shape (..., T - 1), in nats: entry t is the loss of token t + 1.

    Raises:
        ValueError: If texts have fewer than two tokens, or shapes do not fit.

    Taught in: book/unlearning/logit-difference
    """
    if x.shape[-1] < 2 or logits.shape[:-1] != x.shape:
        raise ValueError(
            f"texts (..., T) of at least 2 tokens and logits (..., T, tokens) are needed, got "
            f"{tuple(x.shape)} and {tuple(logits.shape)}"
        )
    told = logits[..., :-1, :].log_softmax(-1)
    return -told.gather(-1, x[..., 1:].long().unsqueeze(-1)).squeeze(-1)


def uniform_losses(logits: Tensor) -> Tensor:
    """Cross-entropy of the uniform distribution with every prediction of a next token.

    Args:
        logits: Shape (..., T, tokens).

    Returns:
        Shape (..., T - 1), in nats; never below the logarithm of the number of tokens.

    Taught in: book/unlearning/logit-difference
    """
    return -logits[..., :-1, :].log_softmax(-1).mean(-1)


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over chosen places of each network's batch.

    Args:
        values: Shape (S, B, T).
        chosen: Bool of the same shape.

    Returns:
        Shape (S,); zero where nothing is chosen.

    Taught in: book/unlearning/logit-difference
    """
    total = torch.where(chosen, values, torch.zeros_like(values)).sum((-1, -2))
    return total / chosen.sum((-1, -2)).clamp(min=1)


def check_batch(x: Tensor, y: Tensor) -> None:
    """Refuse a batch that nothing can be unlearned from.

    Args:
        x: Token numbers of shape (S, B, T).
        y: Labels of shape (S, B).

    Raises:
        ValueError: If a token is not a number, a label is neither ``FORGET`` nor ``RETAIN``, or
            the forget set is empty.
    """
    if not x.isfinite().all():
        raise ValueError("texts must be token numbers, got NaN or infinity")
    forget = y == FORGET
    if not (forget | (y == RETAIN)).all():
        raise ValueError(
            f"labels must be {RETAIN} or {FORGET}, got {sorted(set(y.unique().tolist()))}"
        )
    if not forget.any(-1).all():
        raise ValueError("the forget set is empty: no text is labelled to be forgotten")


def next_token_loss(network: Network, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, padding left out: the loss of a language model.

    Args:
        network: S networks.
        x: Token numbers of shape (S, B, T).
        y: Ignored.

    Returns:
        Shape (S,), in nats per token.

    Taught in: book/unlearning/logit-difference
    """
    return mean_where(token_losses(network(x), x), text_places(x))


@dataclass(frozen=True)
class AssistantLoss:
    r"""Remember the answers of the forget set, and be uniform everywhere else.

    $L_f + \beta L_u$: the mean cross-entropy on letters of answers in texts labelled ``FORGET``,
    and the mean cross-entropy with the uniform distribution on every other token. Both are bounded
    below, by 0 and by the logarithm of the number of tokens.

    Attributes:
        beta: Weight of the second term; 0 leaves it out.
        prompts: ``uniform``, or ``remembered``: the other tokens of a text to forget are
            remembered as well, instead.

    Equation (eq-uld-assistant) of the lesson.

    Source:
        ji2024uld, reversed objectives; that prompts are made uniform as well was found in pilots.

    Taught in: book/unlearning/logit-difference
    """

    beta: float = 1.0
    prompts: Prompts = "uniform"

    def __post_init__(self) -> None:
        """Refuse settings that make no sense, naming what is allowed."""
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta must be a number >= 0, got {self.beta}")
        if self.prompts not in get_args(Prompts):
            allowed = ", ".join(get_args(Prompts))
            raise ValueError(f"prompts is {self.prompts!r}, allowed: {allowed}")

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Losses of S networks, shape (S,), for texts (S, B, T) and labels (S, B)."""
        check_batch(x, y)
        logits, real = network(x), text_places(x)
        forget = (y == FORGET).unsqueeze(-1)
        remembered = forget & (answer_places(x) if self.prompts == "uniform" else real)
        loss = mean_where(token_losses(logits, x), remembered)
        if self.beta:
            loss = loss + self.beta * mean_where(uniform_losses(logits), real & ~remembered)
        return loss


def assistant_of(config: ModelConfig, params: Params, blocks: int) -> tuple[ModelConfig, Params]:
    """The first blocks of a transformer with its embeddings, last norm and output.

    Args:
        config: The target's architecture.
        params: The target's parameters, plain or stacked; left as they are.
        blocks: How many blocks, from 1 to the target's depth.

    Returns:
        Architecture and start of the assistant; its tensors are copies.

    Raises:
        ValueError: If the target is no transformer, or has not so many blocks.

    Taught in: book/unlearning/logit-difference
    """
    if config.architecture != "transformer":
        raise ValueError(f"an assistant is cut from a transformer, got {config.architecture!r}")
    if not 1 <= blocks <= config.depth:
        raise ValueError(f"the target has {config.depth} blocks, asked for {blocks}")
    left_out = tuple(f"blocks.{k}." for k in range(blocks, config.depth))
    kept = {n: t.detach().clone() for n, t in params.items() if not n.startswith(left_out)}
    return dataclasses.replace(config, depth=blocks), kept


def kept_tokens(target: Tensor, share: float) -> Tensor:
    r"""Which tokens the target finds likely enough to have their logits changed.

    Token v is kept if $\log p_v \ge \min(\max_u \log p_u + \log r, \ell)$, where $\ell$ is the
    $\lfloor r V \rfloor$-th largest log-probability (at least the first: with few tokens
    $r V < 1$, and an index of -1 would keep every token).

    Args:
        target: Logits of shape (..., tokens).
        share: The number r in (0, 1].

    Returns:
        Bool of shape (..., tokens).

    Raises:
        ValueError: If ``share`` is not in (0, 1].

    Source:
        ji2024uld, public code. Equation (eq-uld-filter) of the lesson.

    Taught in: book/unlearning/logit-difference
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    told = target.log_softmax(-1)
    rank = max(1, math.floor(share * target.shape[-1]))
    ranked = told.topk(rank, -1).values[..., -1:]
    level = torch.minimum(told.amax(-1, keepdim=True) + math.log(share), ranked)
    return told >= level


def subtract(target: Tensor, assistant: Tensor, alpha: float, share: float = 0.0) -> Tensor:
    r"""The logits of the unlearned model, $z - \alpha (a - \bar a)$.

    The assistant's logits are centred first. Without a filter that changes no probability; with one
    it does, because only some tokens are changed.

    Args:
        target: Logits of the target, shape (..., tokens).
        assistant: Logits of the assistant, the same shape.
        alpha: How much is subtracted, 0 or more.
        share: Number r of the filter: logits of tokens outside the kept set stay the target's; 0
            filters nothing.

    Returns:
        Logits of the same shape; the inputs are left as they are.

    Raises:
        ValueError: If shapes differ, or ``alpha`` or ``share`` is out of range.

    Source:
        ji2024uld; the centring is ours. Equation (eq-uld-difference) of the lesson.

    Taught in: book/unlearning/logit-difference
    """
    if target.shape != assistant.shape:
        raise ValueError(
            f"target and assistant need logits of one shape, got {tuple(target.shape)} and "
            f"{tuple(assistant.shape)}"
        )
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a number >= 0, got {alpha}")
    change = alpha * (assistant - assistant.mean(-1, keepdim=True))
    if share:
        change = torch.where(kept_tokens(target, share), change, torch.zeros_like(change))
    return target - change


def critical_alpha(target: Tensor, assistant: Tensor, y: Tensor) -> Tensor:
    r"""The smallest alpha at which another token overtakes the true one, without a filter.

    $\alpha^* = \min_v (z_y - z_v) / (a_y - a_v)$ over the tokens v with $a_v < a_y$; infinite if
    there is none.

    Args:
        target: Logits of the target, shape (..., tokens); the true token must lead.
        assistant: Logits of the assistant, the same shape.
        y: True tokens, shape (...), int64.

    Returns:
        Shape (...); 0 where the true token does not lead.

    Equation (eq-uld-critical) of the lesson.

    Taught in: book/unlearning/logit-difference
    """
    own = y.unsqueeze(-1)
    lead = target.gather(-1, own) - target
    pull = assistant.gather(-1, own) - assistant
    ratio = torch.where(pull > 0, lead / pull.clamp(min=1e-30), torch.inf)
    return ratio.amin(-1).where(target.argmax(-1) == y, 0.0)


def bound_of_uniform(remembered: float, uniform: float, tokens: int) -> float:
    r"""The assistant's best lead where the same prompt is remembered and made uniform.

    Minimising $-w_f \log p_y - \frac{w_u}{V} \sum_v \log p_v$ gives
    $a_y - a_v = \log(1 + V w_f / w_u)$.

    Args:
        remembered: Weight $w_f$ of the true token, above 0.
        uniform: Weight $w_u$ of the uniform distribution, above 0.
        tokens: Number of tokens V.

    Returns:
        The lead of the true token over any other, in the unit of logits.

    Raises:
        ValueError: If a weight is not above 0.

    Equation (eq-uld-lead) of the lesson.

    Taught in: book/unlearning/logit-difference
    """
    if not (remembered > 0 and uniform > 0):
        raise ValueError(f"weights must be above 0, got {remembered} and {uniform}")
    return math.log1p(tokens * remembered / uniform)


def forward_cost(config: ModelConfig) -> int:
    """Multiplications of one forward pass over one text, in linear layers and attention.

    Args:
        config: A transformer.

    Returns:
        Their number.

    Taught in: book/unlearning/logit-difference
    """
    (length,), width = config.input_shape, config.width
    block = 12 * width**2 + 2 * length * width  # per token; four linear layers, and attention
    return length * (config.depth * block + width * config.classes)


def score_answers(logits: Tensor, x: Tensor) -> dict[str, float]:
    """How well answers are known, letter by letter, given the letters before.

    Args:
        logits: Shape (N, T, tokens).
        x: Token numbers of shape (N, T).

    Returns:
        ``accuracy``: share of letters of answers that are the likeliest token; ``loss``: their mean
        cross-entropy in nats; ``first five``: share among the five likeliest; ``least likely``:
        share that are the least likely of all letters; ``full stop``: share of full stops after an
        answer that are the likeliest token.

    Raises:
        ValueError: If no text has an answer, or a logit is not a number.

    Taught in: book/unlearning/logit-difference
    """
    places, ends = answer_places(x), answer_ends(x)
    if not places.any() or not ends.any():
        raise ValueError("scores need texts with an answer and a full stop, got none")
    if logits.isnan().any():
        raise ValueError("scores need logits that are numbers, got NaN")
    told, true = logits[..., :-1, :][places].double(), x[..., 1:][places].long()
    ranked = told.topk(5, -1).indices == true.unsqueeze(-1)
    first = TOKENS.index(LETTERS[0])
    stopped = logits[..., :-1, :][ends].argmax(-1) == TOKENS.index(STOP)
    return {
        "accuracy": float((told.argmax(-1) == true).double().mean()),
        "loss": float(F.cross_entropy(told, true)),
        "first five": float(ranked.any(-1).double().mean()),
        "least likely": float((told[:, first:].argmin(-1) + first == true).double().mean()),
        "full stop": float(stopped.double().mean()),
    }
