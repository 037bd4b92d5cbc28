"""The fast low-rank term equals the paper's formula, forward and backward, however rows are grouped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ray_lora.engine.dropout import Dropout, draw_of
from ray_lora.engine.kernels import LoraTerm, lora_add, lora_reference, pick
from ray_lora.engine.routing import Routing

SLOTS, RANK, INTO, OUT, PLACES = 7, 4, 6, 5, 3
RANKS = [0, 1, 4, 2, 0, 3, 4]  # of each slot; slot 4 is empty
ROWS = {
    "grouped neighbours": [1, 1, 2, 2, 3, 3],
    "grouped, not neighbours": [1, 1, 3, 3, 6, 6],
    "grouped with the bare base": [0, 0, 1, 1, 2, 2],
    "ragged groups": [1, 2, 2, 2, 5, 5],
    "ragged blocks": [1, 1, 1, 1, 2, 2, 5, 5, 5, 5],
    "shuffled": [5, 0, 2, 5, 1, 0],
    "one slot": [3, 3, 3, 3, 3, 3],
    "one row": [2],
    "a row each": [1, 2, 3, 5, 6, 0],
}


def stacks(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A [slots, rank, in], B [slots, out, rank], alpha/r [slots], zero beyond each slot's rank."""
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(SLOTS, RANK, INTO, dtype=torch.float64, generator=draw)
    b = torch.randn(SLOTS, OUT, RANK, dtype=torch.float64, generator=draw)
    scaling = torch.rand(SLOTS, dtype=torch.float64, generator=draw) + 0.5
    for slot, rank in enumerate(RANKS):
        a[slot, rank:], b[slot, :, rank:] = 0, 0
        scaling[slot] *= rank > 0
    return a, b, scaling


def trained(stack: Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(stack.clone())
    parameter.grad = torch.zeros_like(stack)
    return parameter


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_forward_and_gradients_equal_the_reference(rows: list[int]) -> None:
    a, b, scaling = stacks()
    slots = torch.tensor(rows)
    x = torch.randn(len(rows), PLACES, INTO, dtype=torch.float64)
    y = torch.randn(len(rows), PLACES, OUT, dtype=torch.float64)
    weight = torch.randn(len(rows), PLACES, OUT, dtype=torch.float64)
    routing = Routing.of(slots, RANKS, scaling[None])
    (scale,) = routing.scales

    ours = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    a_ours, b_ours = trained(a), trained(b)
    out = LoraTerm.apply(ours[0], ours[1] * 1, a_ours, b_ours, a_ours.data, b_ours.data, scale, routing, None)
    (out * weight).sum().backward()

    theirs = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    a_theirs, b_theirs = trained(a), trained(b)
    expected = lora_reference(theirs[0], theirs[1], a_theirs, b_theirs, scaling, slots)
    (expected * weight).sum().backward()

    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        fast = lora_add(x, y.clone(), a, b, scale, routing)[0]
    torch.testing.assert_close(fast, expected.detach(), atol=1e-12, rtol=1e-12)
    for mine, reference in zip([*ours, a_ours, b_ours], [*theirs, a_theirs, b_theirs], strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, atol=1e-12, rtol=1e-12)
    idle = [slot for slot in range(SLOTS) if slot not in rows or slot == 0]
    assert not a_ours.grad[idle].any()
    assert not b_ours.grad[idle].any()


@pytest.mark.parametrize("dropped", [False, True], ids=["whole", "dropped"])
def test_stretches_of_tokens_equal_the_reference(dropped: bool) -> None:
    """Slot by slot, of unlike lengths; slot 0 adds nothing, and what lies behind the last stretch is nobody's."""
    a, b, scaling = stacks()
    segments, count = [(0, 0, 3), (2, 3, 8), (5, 8, 9), (6, 9, 14)], 16
    owners = torch.tensor([0] * 3 + [2] * 5 + [5] + [6] * 5 + [0] * 2)
    x, y, weight = (torch.randn(count, size, dtype=torch.float64) for size in (INTO, OUT, OUT))
    weight[14:] = 0
    mask = (torch.rand(count, INTO) > 0.5).double() * 2 if dropped else None
    routing = Routing.of_segments(segments, count, RANKS, scaling[None])
    ours = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    a_ours, b_ours = trained(a), trained(b)
    given = (ours[0], ours[1] * 1, a_ours, b_ours, a_ours.data, b_ours.data, routing.factors[0], routing, mask)
    out = LoraTerm.apply(*given)
    (out * weight).sum().backward()
    theirs = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    a_theirs, b_theirs = trained(a), trained(b)
    inputs = theirs[0] if mask is None else theirs[0] * mask
    expected = lora_reference(inputs[:, None], theirs[1][:, None], a_theirs, b_theirs, scaling, owners)[:, 0]
    (expected * weight).sum().backward()
    torch.testing.assert_close(out[:14], expected[:14], atol=1e-12, rtol=1e-12)
    for mine, reference in zip([*ours, a_ours, b_ours], [*theirs, a_theirs, b_theirs], strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        answered = lora_add(x if mask is None else x * mask, y.clone(), a, b, routing.factors[0], routing)[0]
    torch.testing.assert_close(answered[:14], expected[:14].detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_the_reference_is_the_papers_formula(rows: list[int]) -> None:
    a, b, scaling = stacks()
    x, y = torch.randn(len(rows), PLACES, INTO, dtype=torch.float64), torch.zeros(len(rows), PLACES, OUT).double()
    out = lora_reference(x, y, a, b, scaling, torch.tensor(rows))
    for row, slot in enumerate(rows):
        rank = RANKS[slot]
        expected = x[row] @ (scaling[slot] * b[slot, :, :rank] @ a[slot, :rank]).T
        torch.testing.assert_close(out[row], expected)


def test_gradients_add_up_over_passes() -> None:
    """Two halves of a batch, whatever their order, give the gradient of the whole."""
    a, b, scaling = stacks()
    rows = torch.tensor([1, 2, 2, 5, 5, 6])
    x = torch.randn(6, PLACES, INTO, dtype=torch.float64)
    grads = []
    for parts in ([range(6)], [range(3), range(3, 6)], [range(4, 6), range(4)]):
        a_ours, b_ours = trained(a), trained(b)
        for part in parts:
            routing = Routing.of(rows[list(part)], RANKS, scaling[None])
            y = torch.zeros(len(part), PLACES, OUT, dtype=torch.float64)
            out = LoraTerm.apply(x[list(part)], y, a_ours, b_ours, a, b, routing.scales[0], routing, None)
            out.square().sum().backward()
        grads.append((a_ours.grad, b_ours.grad))
    for a_grad, b_grad in grads[1:]:
        torch.testing.assert_close(a_grad, grads[0][0], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(b_grad, grads[0][1], atol=1e-12, rtol=1e-12)


def test_a_dropped_input_has_no_part_in_the_term_or_its_gradient() -> None:
    a, b, scaling = stacks()
    rows = torch.tensor([1, 2, 5])
    x = torch.randn(3, PLACES, INTO, dtype=torch.float64)
    mask = (torch.rand(3, PLACES, INTO) > 0.5).double() * 2
    y = torch.zeros(3, PLACES, OUT, dtype=torch.float64)
    given = x.clone().requires_grad_()
    a_ours, b_ours = trained(a), trained(b)
    routing = Routing.of(rows, RANKS, scaling[None])
    out = LoraTerm.apply(given, y.clone(), a_ours, b_ours, a, b, routing.scales[0], routing, mask)
    out.square().sum().backward()
    other = x.clone().requires_grad_()
    a_theirs, b_theirs = trained(a), trained(b)
    lora_reference(other * mask, y, a_theirs, b_theirs, scaling, rows).square().sum().backward()
    torch.testing.assert_close(given.grad, other.grad)
    torch.testing.assert_close(a_ours.grad, a_theirs.grad)
    torch.testing.assert_close(b_ours.grad, b_theirs.grad)
    assert not given.grad[mask == 0].any()


def test_picked_entries_send_their_gradients_home() -> None:
    stack = trained(torch.randn(5, 4, 6, dtype=torch.float64))
    rows, columns = torch.tensor([[1], [3], [3]]), torch.tensor([[0, 2], [5, 5], [1, 5]])
    picked = pick(stack, lambda whole: whole[:, :2].transpose(1, 2), rows, columns)
    plain = stack.detach().clone().requires_grad_()
    expected = plain[:, :2].transpose(1, 2)[rows, columns]
    assert torch.equal(picked, expected)
    picked.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(stack.grad, plain.grad)
    untrained = torch.nn.Parameter(stack.detach())
    pick(untrained, lambda whole: whole, torch.tensor([1])).sum().backward()
    assert untrained.grad is None


def test_a_pass_is_cut_into_the_longest_blocks_of_one_slot() -> None:
    routings = {name: Routing.of(torch.tensor(rows), RANKS) for name, rows in ROWS.items()}
    assert {name: (each.block, each.owners.tolist(), each.span) for name, each in routings.items()} == {
        "grouped neighbours": (2, [1, 2, 3], slice(1, 4)),
        "grouped, not neighbours": (2, [1, 3, 6], None),
        "grouped with the bare base": (2, [0, 1, 2], slice(0, 3)),
        "ragged groups": (1, [1, 2, 2, 2, 5, 5], None),
        "ragged blocks": (2, [1, 1, 2, 5, 5], None),
        "shuffled": (1, [5, 0, 2, 5, 1, 0], None),
        "one slot": (6, [3], slice(3, 4)),
        "one row": (1, [2], slice(2, 3)),
        "a row each": (1, [1, 2, 3, 5, 6, 0], None),
    }
    assert Routing.of(torch.tensor([2, 1]), RANKS).span is None
    assert Routing.of(torch.tensor([1, 3]), RANKS).rank == 2


# -------------------------------------------------------------------- dropout


def test_a_mask_keeps_its_share_and_differs_by_row_and_layer() -> None:
    draws = torch.tensor([draw_of(3, 7, row) for row in range(200)])
    x = torch.ones(200, 5, 40)
    for share in (0.1, 0.5, 0.9):
        probability = torch.full((200,), share)
        mask = Dropout(probability, draws).mask(x, 12)
        kept = (mask != 0).float()
        assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - share)])
        deviation = (share * (1 - share)) ** 0.5
        assert kept.mean().item() == pytest.approx(1 - share, abs=4 * deviation / 200)
        assert kept.flatten(1).mean(1).std().item() == pytest.approx(deviation / 200**0.5, rel=0.25)  # over rows
        assert kept.mean(0).std().item() == pytest.approx(deviation / 200**0.5, rel=0.25)  # over places
        others = [Dropout(probability, draws).mask(x, 13), Dropout(probability, draws + 1).mask(x, 12)]
        for other in others:  # as alike as chance has it
            alike = ((other != 0).float() == kept).float().mean().item()
            assert alike == pytest.approx(share**2 + (1 - share) ** 2, abs=0.02)


def test_rows_that_drop_nothing_keep_everything() -> None:
    mask = Dropout(torch.tensor([0.0, 0.5, 0.0]), torch.tensor([1, 2, 3])).mask(torch.randn(3, 4, 9), 2**32 - 1)
    assert (mask[[0, 2]] == 1).all()
    assert set(mask[1].unique().tolist()) == {0.0, 2.0}


def test_a_longer_row_begins_as_a_shorter_one() -> None:
    dropout = Dropout(torch.tensor([0.3, 0.3]), torch.tensor([5, 2**62]))
    short, long = dropout.mask(torch.ones(2, 3, 8), 1), dropout.mask(torch.ones(2, 11, 8), 1)
    assert torch.equal(long[:, :3], short)
    assert not torch.equal(long[0], long[1])


def test_draws_differ_by_seed_step_and_row() -> None:
    draws = {draw_of(seed, step, row) for seed in (0, 1, 2**31) for step in (0, 1, 1000) for row in (0, 1, 10**6)}
    assert len(draws) == 27
    assert all(0 <= draw < 2**63 for draw in draws)
