"""The arithmetic of memory and of hours, against networks whose needs are counted by hand."""

import math

import pytest
import torch
from torch import nn

from mmcon.errors import InputError
from mmcon.operations.memory_budget import GIB, RESERVED, Cost, Memory, activation_bytes, byte_count, forward_operations
from mmcon.training.optim import create_optimizer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Linear(20, 5))


def stepped(layers, name):
    optimizer = create_optimizer(layers, name, learning_rate=0.1)
    layers(torch.ones(2, 10)).sum().backward()
    optimizer.step()
    return optimizer


def test_activations_are_what_the_backward_pass_keeps():
    layers = network()
    # The first layer keeps its input (10 numbers) for its weight's gradient, as the input has none; the sigmoid keeps
    # its output (20), which is the second layer's input as well: one storage. 30 numbers of 4 bytes a row.
    found = activation_bytes(lambda rows: layers(torch.ones(rows, 10)), parameters=layers.parameters())
    assert found == 30 * 4


def test_operations_of_linear_layers():
    # A multiply-add is two operations: 2 · (10 · 20 + 20 · 5) a row.
    layers = network()
    assert forward_operations(lambda rows: layers(torch.ones(rows, 10))) == 2 * (10 * 20 + 20 * 5)


def test_memory_is_counted_by_the_byte():
    numbers = 10 * 20 + 20 + 20 * 5 + 5
    layers = network()
    memory = Memory.measure(layers, stepped(layers, "sgd"), activations_per_row=120, rows=8, copies=[network()])
    assert memory.parameters == memory.gradients == memory.optimizer == memory.copies == 4 * numbers
    assert memory.total == 4 * 4 * numbers + 8 * 120
    # AdamW has two averages and a step count, a float32 for each of the four tensors.
    layers = network()
    assert (
        Memory.measure(layers, stepped(layers, "adamw"), activations_per_row=1, rows=1).optimizer == 8 * numbers + 4 * 4
    )


def test_rows_that_fit():
    memory = Memory(parameters=GIB, gradients=GIB, optimizer=GIB, copies=0, activations_per_row=2**20, rows=4096)
    assert memory.rows_that_fit(10 * GIB) == math.floor((10 * GIB * (1 - RESERVED) - 3 * GIB) / 2**20)
    assert memory.rows_that_fit(2 * GIB) == 0
    assert "4.00 GiB = 4,096 rows × 1.0 MiB" in memory.describe()


def test_a_storage_counts_once():
    whole = torch.zeros(100)
    assert byte_count([whole, whole[:10], whole.view(10, 10), torch.zeros(0)]) == 400


def test_hours_by_arithmetic():
    cost = Cost(samples=1000, views=2, epochs=3, operations=1e9, passes=3, peak=1e12, share=0.5)
    assert cost.hours == pytest.approx(1000 * 2 * 3 * 1e9 * 3 / 0.5e12 / 3600)
    assert "estimated" in cost.describe()


def test_batches_to_measure_at_must_differ():
    with pytest.raises(InputError, match="small < large"):
        activation_bytes(lambda rows: None, small=4, large=4)
