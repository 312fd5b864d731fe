"""Layers that start at zero: told apart from pruned ones where that is known, else pointed out."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

import lampfast
from lampfast._training import known


def adapted() -> nn.Sequential:
    """A model with a layer that starts at zero, as LoRA's B."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    nn.init.zeros_(model.get_parameter("1.weight"))
    return model


def step(model: nn.Sequential, optimizer: SGD) -> list[int]:
    """How many weights the layers have after a step that moves all of them."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return [layer.kept for layer in lampfast.report(model).layers]


def test_what_was_not_pruned_is_free_to_train() -> None:
    model = adapted()
    optimizer = SGD(model.parameters(), lr=0.1)
    lampfast.prune(model, 0.5, exclude="1.*")
    kept_before = [layer.kept for layer in lampfast.report(model).layers]
    with pytest.warns(
        UserWarning, match=r"layer '1\.weight' is zero .* without having been pruned"
    ) as caught:
        kept = lampfast.keep_zeros(model, optimizer)
    assert caught[0].filename == __file__, "the line that made the call"
    lampfast.prune(model, 0.6)  # takes its zeros first, but it has been pruned of nothing
    pruned = [layer.kept for layer in lampfast.report(model).layers]
    assert pruned[1] == 0
    assert step(model, optimizer) == [pruned[0], 36, pruned[2]]
    assert pruned != kept_before or pruned[1] == 0
    lampfast.prune(model, 1.0)  # it is a layer like others by now
    assert step(model, optimizer) == [0, 0, 0]
    assert kept


def test_update_holds_it_after_all() -> None:
    model = adapted()
    optimizer = SGD(model.parameters(), lr=0.1)
    lampfast.prune(model, 0.5, exclude="1.*")
    with pytest.warns(UserWarning, match=r"update\(\)"):
        kept = lampfast.keep_zeros(model, optimizer)
    kept.update()
    assert step(model, optimizer)[1] == 0


def test_where_nothing_is_known_all_zeros_are_held_with_a_warning() -> None:
    for model, also_pruned in ((adapted(), False), (adapted(), True)):
        optimizer = SGD(model.parameters(), lr=0.1)
        if also_pruned:
            lampfast.prune(model, 0.5)
        with pytest.warns(UserWarning, match=r"layer '1\.weight' is zero throughout") as caught:
            kept = lampfast.keep_zeros(model, optimizer)
        assert [warning.filename for warning in caught] == [__file__]
        assert "exclude=" in str(caught[0].message)
        assert step(model, optimizer)[1] == 0
        assert kept


def test_many_such_layers_are_one_warning() -> None:
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
    for i in range(8):
        nn.init.zeros_(model.get_parameter(f"{i}.weight"))
    words = "layers '0.weight', .*'4.weight' and 3 more are zero throughout"
    with pytest.warns(UserWarning, match=words) as caught:
        lampfast.keep_zeros(model, SGD(model.parameters())).remove()
    assert len(caught) == 1


def test_what_is_known_goes_with_the_tensors() -> None:
    before = len(known.layers._pruned), len(known.layers._masks)
    weight = torch.ones(2)
    assert not known.layers.was_pruned(weight)
    lampfast.prune([weight], 0)
    lampfast.prune([weight, torch.ones(3)], 0)
    assert known.layers.was_pruned(weight)
    assert not known.layers.was_pruned(weight.clone())
    known.layers.rewound_to_zero(weight, weight != 0)
    del weight
    assert (len(known.layers._pruned), len(known.layers._masks)) == before


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_made_an_error_leaves_no_hook() -> None:
    model = adapted()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserWarning):
        lampfast.keep_zeros(model, optimizer)
    assert step(model, optimizer)[1] == 36
