r"""Match the units of one network to those of another, by their weights or by their activations.

Weight matching looks for the permutations $\pi$ that bring network B closest to network A,

$$\max_\pi \langle \theta_A, \pi(\theta_B) \rangle = \max_{P_1, \dots, P_{L-1}}
\sum_\ell \langle W^A_\ell, P_\ell W^B_\ell P_{\ell-1}^\top \rangle,$$

a sum of bilinear assignment problems. No algorithm is known that solves it exactly in reasonable
time, but with all groups but one held fixed, the rest is a linear assignment problem, which SciPy
solves exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lmc_lessons.connectivity.symmetry import (
    Member,
    Permutations,
    Symmetry,
    activations,
    check_permutations,
)
from lmc_lessons.models import Params

Start = Literal["identity", "greedy"]
Method = Literal["coordinate-descent", "frank-wolfe"]
Similarity = Literal["correlation", "second-moment"]
PROGRESS = {torch.float32: 1e-6, torch.float64: 1e-12}  # smallest gain, relative to the norms


@dataclass(frozen=True)
class Matching:
    """Permutations of network B, and how they were found.

    Attributes:
        permutations: Group name to the index of B's unit that goes to each position.
        objective: The inner product of A and the permuted B, at the start and after every sweep,
            over what is matched: all parameters, no buffers, also those that no group touches.
        sweeps: The permutations at the start and after every sweep.
        solved: Number of assignment problems solved, the proof of convergence included.
    """

    permutations: Permutations
    objective: tuple[float, ...]
    sweeps: tuple[Permutations, ...]
    solved: int


def assign(similarity: Tensor) -> Tensor:
    r"""The permutation with the largest total similarity, $\arg\max_P \langle P, C \rangle_F$.

    If every row's largest entry lies in a column of its own, those entries are the answer, and no
    assignment problem needs to be solved.

    Args:
        similarity: Matrix $C$ of shape (n, n): row i is A's unit i, column j is B's unit j.

    Returns:
        For each row the column assigned to it, shape (n,), int64, on the CPU.

    Raises:
        ValueError: If the matrix is not square or not finite.

    Taught in: book/connectivity/weight-matching
    """
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"assign needs a square matrix, got shape {tuple(similarity.shape)}")
    if not torch.isfinite(similarity).all():
        raise ValueError("assign needs finite similarities, got NaN or infinity")
    best = similarity.argmax(1)
    if len(best.unique()) == len(best):
        return best.cpu()
    return torch.from_numpy(linear_sum_assignment(similarity.cpu().numpy(), maximize=True)[1])


def weight_matching(
    symmetry: Symmetry,
    a: Params,
    b: Params,
    *,
    seed: int = 0,
    start: Start | Permutations = "identity",
    method: Method = "coordinate-descent",
    restarts: int = 1,
    max_sweeps: int = 100,
    device: str | torch.device | None = None,
) -> Matching:
    r"""Permute B's units so that its weights come close to A's.

    Coordinate descent is Algorithm 1 of Git Re-Basin: solve one group's assignment problem at a
    time, in random order, until a whole sweep changes nothing. Equations (eq-objective) and
    (eq-coordinate) of the lesson on weight matching.

    Args:
        symmetry: The groups of the architecture.
        a: Network A: parameters and buffers by name.
        b: Network B, of the same architecture.
        seed: Decides the order of the groups.
        start: ``identity`` as in the paper; ``greedy``: one pass in the order of the network that
            uses only terms whose other side is already matched; or permutations to start from.
        method: ``coordinate-descent``, or ``frank-wolfe``: move all groups at once through doubly
            stochastic matrices from their centre (``start`` does not matter), round, and finish by
            coordinate descent.
        restarts: Number of runs with seeds ``seed``, ``seed + 1``...; the best objective wins.
        max_sweeps: Sweeps after which to stop although something still changed.
        device: Where to compute matrix products; that of A by default.

    Returns:
        The permutations found, with the objective after each sweep (it never falls).

    Raises:
        ValueError: If the networks differ in shapes, hold non-finite numbers, or an option is
            unknown.

    Source:
        ainsworth2023git, Algorithm 1.

    Taught in: book/connectivity/weight-matching
    """
    if not isinstance(start, dict) and start not in get_args(Start):
        raise ValueError(f"start is {start!r}, allowed: {', '.join(get_args(Start))}")
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}, allowed: {', '.join(get_args(Method))}")
    if restarts < 1 or max_sweeps < 1:
        raise ValueError(f"restarts and max_sweeps must be >= 1, got {restarts}, {max_sweeps}")
    problem = _Problem(symmetry, a, b, device)
    if isinstance(start, dict):
        check_permutations(symmetry, start)
        begin = {**symmetry.identity(), **{k: v.cpu() for k, v in start.items()}}
    else:
        begin = problem.greedy() if start == "greedy" else symmetry.identity()
    if method == "frank-wolfe":
        begin = _frank_wolfe(problem)
    runs = (
        _coordinate_descent(problem, dict(begin), seed + k, max_sweeps) for k in range(restarts)
    )
    return max(runs, key=lambda run: run.objective[-1])


def _coordinate_descent(
    problem: _Problem, permutations: Permutations, seed: int, max_sweeps: int
) -> Matching:
    stream = np.random.default_rng(seed)
    objective = problem.objective(permutations)
    history, sweeps = [objective], [dict(permutations)]
    stale = set(range(len(problem.names)))  # groups whose problem changed since it was last solved
    solved = 0
    for _ in range(max_sweeps):
        gained = False
        for group in stream.permutation(len(problem.names)):
            if group not in stale:
                continue
            stale.discard(int(group))
            solved += 1
            gain, index = problem.improve(int(group), permutations)
            if gain > problem.progress:
                permutations[problem.names[group]] = index
                objective += gain
                gained = True
                stale |= problem.neighbours[group]
        history.append(objective)
        sweeps.append(dict(permutations))
        if not gained:
            break
    return Matching(permutations, tuple(history), tuple(sweeps), solved)


class _Term:
    """One tensor of the objective, laid out once for the group that is being solved.

    Attributes:
        left: A's tensor as a matrix (units, everything else), ready for the product.
        right: B's tensor with the units first, then the other permuted axes, unpermuted.
        others: The other permuted axes of ``right``: position, group and block.
    """

    def __init__(
        self, a: Tensor, b: Tensor, member: Member, others: list[tuple[int, Member]]
    ) -> None:
        def lay_out(tensor: Tensor) -> Tensor:
            shape = list(tensor.shape)
            axes = sorted([(member.axis, member.block)] + [(m.axis, m.block) for _, m in others])
            for axis, block in reversed(axes):  # split (units * block) into units, block
                shape[axis : axis + 1] = [shape[axis] // block, block]
            position = {}
            for split, (axis, _) in enumerate(axes):
                position[axis] = axis + split
            order = [position[member.axis]] + [position[m.axis] for _, m in others]
            rest = [d for d in range(len(shape)) if d not in order]
            return tensor.reshape(shape).permute(order + rest).contiguous()

        self.left = lay_out(a).flatten(1)
        self.right = lay_out(b)
        self.others = [(axis + 1, group) for axis, (group, _) in enumerate(others)]


class _Problem:
    """The sum of bilinear assignment problems that two networks pose."""

    def __init__(
        self, symmetry: Symmetry, a: Params, b: Params, device: str | torch.device | None
    ) -> None:
        self.names = [group.name for group in symmetry.groups]
        self.sizes = [group.size for group in symmetry.groups]
        _check_pair(a, b)
        place = device or next(iter(a.values())).device
        owners: dict[str, list[tuple[int, Member]]] = {}
        for index, group in enumerate(symmetry.groups):
            for member in group.members:
                if not member.buffer:
                    owners.setdefault(member.tensor, []).append((index, member))
        matched = self._matched(symmetry, a)
        a, b = ({n: p[n].detach().to(place) for n in matched} for p in (a, b))
        self.dtype = next(iter(a.values())).dtype
        self.untouched = sum(_dot(a[n], b[n]) for n in matched if n not in owners)
        norms = [sum(_dot(p[n], p[n]) for n in matched) ** 0.5 for p in (a, b)]
        self.progress = PROGRESS.get(self.dtype, 1e-6) * norms[0] * norms[1]
        self.constant = [torch.zeros(n, n, dtype=self.dtype, device=place) for n in self.sizes]
        self.terms: list[list[_Term]] = [[] for _ in self.names]
        self.neighbours: list[set[int]] = [set() for _ in self.names]
        self.own: list[bool] = [False for _ in self.names]  # a group on two axes of one tensor
        self.value_terms: list[tuple[int, _Term]] = []
        for tensor, owner in owners.items():
            self._add(a[tensor], b[tensor], owner)

    def _matched(self, symmetry: Symmetry, a: Params) -> list[str]:
        buffers = {name for name, _ in symmetry.graph.named_buffers()}
        return [n for n, t in a.items() if n not in buffers and t.is_floating_point()]

    def _add(self, a: Tensor, b: Tensor, owner: list[tuple[int, Member]]) -> None:
        for k, (group, member) in enumerate(owner):
            others = owner[:k] + owner[k + 1 :]
            term = _Term(a, b, member, others)
            if k == 0 and others:
                self.value_terms.append((group, term))
            if not others:
                self.constant[group] += term.left @ term.right.flatten(1).T
                continue
            self.terms[group].append(term)
            self.neighbours[group] |= {g for g, _ in others}
            self.own[group] |= group in {g for g, _ in others}

    def similarity(
        self, group: int, permutations: Permutations, known: Iterable[int] | None = None
    ) -> Tensor:
        """Similarity of A's and B's units of one group, the other groups held fixed."""
        total = self.constant[group].clone()
        for term in self.terms[group]:
            if known is None or {g for _, g in term.others} <= set(known):
                total.addmm_(term.left, self._permuted(term, permutations).T)
        return total

    def _permuted(self, term: _Term, permutations: Permutations) -> Tensor:
        right = term.right
        for axis, group in term.others:
            index = permutations[self.names[group]].to(right.device)
            right = right.index_select(axis, index)
        return right.flatten(1)

    def improve(self, group: int, permutations: Permutations) -> tuple[float, Tensor]:
        """The best permutation of one group, the others held fixed, and what it gains."""
        similarity = self.similarity(group, permutations)
        index = assign(similarity)
        old = permutations[self.names[group]]
        if self.own[group]:  # the other axis moves along, so the gain is not linear
            moved = {**permutations, self.names[group]: index}
            return self.objective(moved) - self.objective(permutations), index
        rows = torch.arange(len(index), device=similarity.device)
        new, kept = (similarity[rows, i.to(rows.device)].double().sum() for i in (index, old))
        return float(new - kept), index

    def objective(self, permutations: Permutations) -> float:
        """Inner product of A and the permuted B over everything that is matched."""
        total = self.untouched
        for group, matrix in enumerate(self.constant):
            rows = torch.arange(len(matrix), device=matrix.device)
            index = permutations[self.names[group]].to(matrix.device)
            total += float(matrix[rows, index].double().sum())
        for group, term in self.value_terms:
            index = permutations[self.names[group]].to(term.left.device)
            total += _dot(term.left, self._permuted(term, permutations)[index])
        return total

    def pull(self, group: int, matrices: list[Tensor]) -> Tensor:
        """The part of a group's gradient that comes from tensors shared with other groups."""
        total = torch.zeros_like(self.constant[group])
        for term in self.terms[group]:
            ((axis, other),) = term.others  # two groups a tensor, as in every layer known here
            moved = torch.tensordot(matrices[other], term.right, dims=([1], [axis])).movedim(
                0, axis
            )
            total.addmm_(term.left, moved.flatten(1).T)
        return total

    def greedy(self) -> Permutations:
        """One pass in the order of the network; only terms whose other side is already matched."""
        permutations: Permutations = {}
        for group, name in enumerate(self.names):
            permutations[name] = assign(self.similarity(group, permutations, known=range(group)))
        return permutations


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


def _check_pair(a: Params, b: Params) -> None:
    for name in a.keys() | b.keys():
        shapes = [tuple(p[name].shape) if name in p else "absent" for p in (a, b)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"networks differ at {name}: {shapes[0]} in A, {shapes[1]} in B")
        for which, params in (("A", a), ("B", b)):
            if not torch.isfinite(params[name]).all():
                raise ValueError(f"network {which} has non-finite numbers in {name}")


def _frank_wolfe(problem: _Problem, *, iterations: int = 200) -> Permutations:
    """Maximise over doubly stochastic matrices, then round every group to its nearest permutation.

    The start is the centre, where every permutation counts alike. All groups move at once towards
    the permutations that the gradient asks for. The objective along the step is a quadratic whose
    two coefficients are known exactly, so the best step length is too.
    """
    soft = [torch.full_like(c, 1 / len(c)) for c in problem.constant]
    slopes = [c + problem.pull(g, soft) for g, c in enumerate(problem.constant)]
    first = None
    for _ in range(iterations):
        steps = [_matrix(assign(s), problem) - p for s, p in zip(slopes, soft, strict=True)]
        linear = sum(_dot(slope, step) for slope, step in zip(slopes, steps, strict=True))
        first = linear if first is None else first
        if linear <= 1e-4 * first:
            break
        turns = [problem.pull(g, steps) for g in range(len(steps))]
        quadratic = sum(_dot(turn, step) for turn, step in zip(turns, steps, strict=True)) / 2
        length = 1.0 if quadratic >= 0 else min(1.0, -linear / (2 * quadratic))
        for p, step, slope, turn in zip(soft, steps, slopes, turns, strict=True):
            p.add_(step, alpha=length)
            slope.add_(
                turn, alpha=length
            )  # the gradient is linear, so it is updated, not recomputed
    return {name: assign(p) for name, p in zip(problem.names, soft, strict=True)}


def _matrix(index: Tensor, problem: _Problem) -> Tensor:
    place = problem.constant[0]
    return torch.eye(len(index), dtype=place.dtype, device=place.device)[index.to(place.device)]


def activation_matching(
    symmetry: Symmetry,
    a: Params,
    b: Params,
    x: Tensor,
    *,
    similarity: Similarity = "correlation",
    chunk: int = 1024,
) -> Permutations:
    r"""Permute B's units so that they respond to data as A's do.

    One assignment problem per group on $C = Z^A Z^{B\top}$ (second moment) or on the correlations,
    the groups independent of each other. Equation (eq-activation) of the lesson on weight matching.
    Moments are summed in float64 over chunks. A unit that never varies has correlation 0 with every
    other.

    Args:
        symmetry: The groups of the architecture.
        a: Network A: parameters and buffers by name.
        b: Network B, of the same architecture.
        x: Inputs of shape (N, ...), usually training data; both networks see the same.
        similarity: ``correlation`` or ``second-moment``.
        chunk: Number of inputs per forward pass.

    Returns:
        Group name to the index of B's unit that goes to each position.

    Raises:
        ValueError: If there are no inputs, the networks differ in shapes, or an option is unknown.

    Source:
        li2016convergent (correlation); ainsworth2023git, section 3.1 (second moment).

    Taught in: book/connectivity/weight-matching
    """
    if similarity not in get_args(Similarity):
        allowed = ", ".join(get_args(Similarity))
        raise ValueError(f"similarity is {similarity!r}, allowed: {allowed}")
    if len(x) == 0:
        raise ValueError("activation_matching needs at least one input, got none")
    _check_pair(a, b)
    matrices = unit_similarity(symmetry, a, b, x, similarity=similarity, chunk=chunk)
    return {name: assign(matrix) for name, matrix in matrices.items()}


class _Moments:
    """First and second moments of two sets of units, summed over samples in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, a: Tensor, b: Tensor) -> None:
        """Count in activations of shape (units, samples) on the same samples."""
        new = [a.sum(1), b.sum(1), (a * a).sum(1), (b * b).sum(1), a @ b.T]
        self.sums = [s + n for s, n in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += a.shape[1]

    def second_moment(self) -> Tensor:
        """Mean product of every unit of A with every unit of B, shape (units, units)."""
        return self.sums[4] / self.count

    def correlation(self) -> Tensor:
        """Pearson correlation, shape (units, units); 0 where a unit never varies."""
        mean_a, mean_b, square_a, square_b, product = (s / self.count for s in self.sums)
        variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
        alive_a, alive_b = variance_a > 1e-12 * square_a, variance_b > 1e-12 * square_b
        alive = torch.outer(alive_a, alive_b)
        scale = torch.outer(variance_a.clamp_min(0).sqrt(), variance_b.clamp_min(0).sqrt())
        covariance = product - torch.outer(mean_a, mean_b)
        return torch.where(alive, covariance / torch.where(alive, scale, 1.0), 0.0)


def unit_similarity(
    symmetry: Symmetry,
    a: Params,
    b: Params,
    x: Tensor,
    *,
    similarity: Similarity = "correlation",
    chunk: int = 1024,
) -> dict[str, Tensor]:
    """How alike the units of two networks respond to the same inputs.

    Args:
        symmetry: The groups of the architecture.
        a: Network A: parameters and buffers by name.
        b: Network B, permuted or not.
        x: Inputs of shape (N, ...).
        similarity: ``correlation`` or ``second-moment``.
        chunk: Number of inputs per forward pass.

    Returns:
        Group name to a matrix of shape (size, size): A's units by B's; the diagonal holds the pairs
        that share a position.

    Taught in: book/connectivity/weight-matching
    """
    moments = {group.name: _Moments() for group in symmetry.groups}
    for part in x.split(chunk):
        shown_a, shown_b = activations(symmetry, a, part), activations(symmetry, b, part)
        for name, moment in moments.items():
            moment.add(shown_a[name].double(), shown_b[name].double())
    if similarity == "correlation":
        return {name: moment.correlation() for name, moment in moments.items()}
    return {name: moment.second_moment() for name, moment in moments.items()}
