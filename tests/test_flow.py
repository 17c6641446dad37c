"""Trajectories against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from companion import flow


def test_straight_line_has_no_turning_and_a_finite_gradient(device):
    direction = torch.randn(5, 7, dtype=torch.float64, device=device)
    points = [(k * direction).requires_grad_() for k in range(4)]
    path = flow.steps(points)
    angles = flow.turning_angles(path)
    torch.testing.assert_close(angles, torch.zeros(2, 5, dtype=torch.float64, device=device), atol=1e-7, rtol=0)
    angles.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in points)
    expected = direction.norm(dim=1).expand(3, 5)
    torch.testing.assert_close(flow.lengths(path), expected)
    torch.testing.assert_close(flow.lengths(path, norm=1), direction.abs().sum(1).expand(3, 5))


@pytest.mark.parametrize("sides", [3, 4, 7, 100])
def test_opened_regular_polygon_turns_by_all_but_one_of_its_angles(sides, device):
    turn = torch.arange(sides + 1, dtype=torch.float64, device=device) * (2 * math.pi / sides)
    points = [torch.stack([t.cos(), t.sin()]).expand(3, 2) for t in turn]
    path = flow.steps(points)
    total = flow.turning_angles(path).sum(0)
    torch.testing.assert_close(total, torch.full_like(total, 2 * math.pi * (sides - 1) / sides))
    length = flow.lengths(path).sum(0)
    torch.testing.assert_close(length, torch.full_like(length, 2 * sides * math.sin(math.pi / sides)))


def test_turning_back_is_half_a_turn_and_a_pause_has_no_angle():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    angles = flow.turning_angles([x, -x])
    torch.testing.assert_close(angles, torch.tensor([[math.pi, 0.0]]))


def test_pause_has_a_finite_gradient():
    x = torch.zeros(1, 3, requires_grad=True)
    y = torch.ones(1, 3)
    flow.turning_angles([x, y, 2 * y]).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_stages_are_cut_where_the_shape_changes():
    shapes = {"a": (2, 4, 8, 8), "b": (2, 4, 8, 8), "c": (2, 8, 4, 4), "d": (2, 8, 4, 4), "e": (2, 10)}
    runs = flow.stages({name: torch.zeros(shape) for name, shape in shapes.items()})
    assert [list(run) for run in runs] == [["a", "b"], ["c", "d"], ["e"]]


def test_steps_between_shapes_are_refused():
    with pytest.raises(ValueError, match=r"cannot be carried.*stages"):
        flow.steps([torch.zeros(2, 8, 4, 4), torch.zeros(2, 4, 8, 8)])
