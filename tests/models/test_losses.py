import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prism_sweeps.models.losses import by_source, supervised_loss


def inputs(bias: bool = False, count: int = 13, width: int = 8, vocabulary: int = 31, dtype=torch.float32):
    torch.manual_seed(0)
    hidden_MD = torch.randn(count, width, dtype=dtype, requires_grad=True)
    head = nn.Linear(width, vocabulary, bias=bias).to(dtype)
    return hidden_MD, head, torch.randint(vocabulary, (count,)), torch.rand(count)


def gradients(loss, hidden_MD, head):
    return torch.autograd.grad(loss, [hidden_MD, *head.parameters()])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 31 * 5, 1 << 20])
def test_loss_and_gradients_are_those_of_torch(bias: bool, chunk: int):
    hidden_MD, head, targets_M, weight_M = inputs(bias)
    loss, losses_M = supervised_loss(hidden_MD, head, targets_M, weight_M, chunk)
    plain_M = F.cross_entropy(head(hidden_MD), targets_M, reduction="none")
    expected = (plain_M * weight_M).sum()
    assert torch.allclose(losses_M, plain_M, atol=1e-6)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, theirs in zip(
        gradients(3 * loss, hidden_MD, head), gradients(3 * expected, hidden_MD, head), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_frozen_head_costs_no_gradient_and_hands_one_on():
    hidden_MD, head, targets_M, weight_M = inputs()
    head.requires_grad_(False)
    loss, _ = supervised_loss(hidden_MD, head, targets_M, weight_M)
    plain = (F.cross_entropy(head(hidden_MD), targets_M, reduction="none") * weight_M).sum()
    (mine,) = torch.autograd.grad(loss, [hidden_MD])
    assert torch.allclose(mine, torch.autograd.grad(plain, [hidden_MD])[0], atol=1e-6)


def test_gradient_of_the_head_is_summed_in_single_precision():
    """In bfloat16, 4,096 chunks of one row each would lose most of what they add."""
    hidden_MD, head, targets_M, _ = inputs(count=4096, dtype=torch.bfloat16)
    weight_M = torch.full((4096,), 1 / 4096)
    loss, _ = supervised_loss(hidden_MD, head, targets_M, weight_M, chunk=1)
    _, mine = gradients(loss, hidden_MD, head)
    wide, wide_head = hidden_MD.detach().float(), nn.Linear(8, 31, bias=False)
    wide_head.weight.data.copy_(head.weight.data.float())
    exact = torch.autograd.grad(F.cross_entropy(wide_head(wide), targets_M), [wide_head.weight])[0]
    assert mine.dtype == torch.bfloat16
    assert (mine.float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_no_gradient_is_computed_where_none_is_asked_for():
    hidden_MD, head, targets_M, weight_M = inputs()
    with torch.no_grad():
        loss, _ = supervised_loss(hidden_MD, head, targets_M, weight_M)
    assert not loss.requires_grad


def test_nothing_supervised_is_no_loss():
    hidden_MD, head, targets_M, weight_M = inputs(count=0)
    loss, losses_M = supervised_loss(hidden_MD, head, targets_M, weight_M)
    assert (loss.item(), len(losses_M)) == (0.0, 0)
    assert all((gradient == 0).all() for gradient in gradients(loss, hidden_MD, head))


def test_sums_by_source():
    assert by_source(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), 3).tolist() == [2.0, 0.0, 5.0]
