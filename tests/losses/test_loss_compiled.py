"""The loss under torch.compile: one node of the graph, with the value and gradient of the step that is not compiled."""

import inspect
import sys

import pytest
import torch
from loss_cases import unit
from torch._dynamo.testing import CompileCounterWithBackend

from mmcon.affinity import CandidateWeights, LabelKernel, SameLabel, SameSample, TimeKernel
from mmcon.affinity.graph_arguments import flatten, unflatten
from mmcon.errors import InputError
from mmcon.losses import HardNegatives, SupConLoss, weighted_supcon

pytestmark = [
    # Of PyTorch: inductor loads scripted functions, and a graph after another looks at inner gradients.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def without_type_checks():
    """The functions without the type checks that the tests add to them, which tracing cannot follow."""
    traced = [
        m for name, m in sys.modules.items() if name.startswith(("mmcon.losses", "mmcon.affinity", "mmcon.batch"))
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module in (*traced, sys.modules[__name__]):
            classes = [value for value in vars(module).values() if inspect.isclass(value)]
            for owner in (module, *classes):
                for name, value in list(vars(owner).items()):
                    if inspect.isfunction(value) and "jaxtyping" in value.__code__.co_filename:
                        patch.setattr(owner, name, value.__wrapped__)
        yield


@pytest.fixture(autouse=True)
def without_graphs():
    torch.compiler.reset()


def normalized(features, weight):
    return torch.nn.functional.normalize(features @ weight, dim=1)


def of_labels(features, weight, labels, **settings):
    return 2 * weighted_supcon(normalized(features, weight), None, SameLabel(labels), temperature=0.1, **settings)


def of_module(features, weight, labels):
    return SupConLoss(temperature=0.1)(features @ weight, labels)


def of_views(features, weight, labels):
    return SupConLoss(temperature=0.1)((features @ weight).reshape(2, -1, 8).transpose(0, 1))


def of_pairs(features, weight, labels):
    pairs = SameSample(torch.arange(len(labels)), torch.arange(len(labels)))
    return weighted_supcon(normalized(features, weight), normalized(features.flip(1), weight), pairs, temperature=0.1)


def of_queue(features, weight, labels):
    rows, queue = normalized(features, weight), normalized(features.flip(1), weight).detach()
    n = len(labels)
    pool, own = torch.cat([rows, queue]), torch.arange(n)
    stored = CandidateWeights(torch.arange(2 * n) >= n, anchors=n)
    same = SameLabel(labels, torch.cat([labels, labels + 1]))
    return weighted_supcon(
        rows, pool, same, temperature=0.1, self_index=own, denominator="one", negative_weights=stored
    )


def of_sum(features, weight, labels):
    graded = TimeKernel(labels.float(), group=labels // 2, width_seconds=2.0) + 0.5 * SameLabel(labels)
    return weighted_supcon(normalized(features, weight), None, graded, temperature=0.1, form="in", reduction="all")


def of_hard_negatives(features, weight, labels):
    return of_labels(features, weight, labels, denominator="one", negative_weights=HardNegatives(0.5))


def of_width(features, weight, labels):
    """A temperature and a kernel's width with gradients, and the factor of the temperature."""
    kernel = LabelKernel(labels.float(), width=1 + weight[0, 0].square(), floor=0.1)
    rows, temperature = normalized(features, weight), 0.1 + weight[0, 1].square()
    return weighted_supcon(rows, None, kernel, temperature=temperature, denominator="one", scale="temperature")


def of_kernel(features, weight, labels):
    kernel = LabelKernel(labels.float(), width=50.0, floor=0.1)
    return weighted_supcon(normalized(features, weight), None, kernel, temperature=0.1, denominator="one")


def of_matrix(features, weight, labels):
    return SupConLoss(temperature=0.1)(features @ weight, mask=(labels[:, None] == labels).float())


def of_half(features, weight, labels):
    rows = torch.nn.functional.normalize((features @ weight).half(), dim=1)
    return weighted_supcon(rows, None, SameLabel(labels), temperature=0.1)


STEPS = [
    of_labels, of_module, of_views, of_pairs, of_queue, of_sum, of_hard_negatives, of_width, of_kernel, of_matrix,
    of_half,
]  # fmt: skip


def value_and_gradient(step, n):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 8, generator=generator).requires_grad_()
    loss = step(torch.randn(n, 16, generator=generator), weight, torch.arange(n) // 4)
    loss.backward()
    return loss.detach(), weight.grad


def assert_equal(step, n, backend):
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    for ours, expected in zip(value_and_gradient(compiled, n), value_and_gradient(step, n), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_tiles_is_one_graph_with_the_same_loss_and_gradient(step):
    assert_equal(step, 516, "aot_eager")


@pytest.mark.parametrize(
    ("step", "n"), [(of_labels, 12), (of_width, 12), (of_matrix, 12), (of_module, 512), (of_queue, 1024)]
)
def test_a_step_of_few_rows_or_many_is_one_graph_too(step, n):
    assert_equal(step, n, "aot_eager")


@pytest.mark.slow  # 8,192 rows, and inductor compiles C++
def test_a_step_of_many_rows_and_one_in_machine_code_have_the_same_loss_and_gradient():
    assert_equal(of_module, 8192, "aot_eager")
    compiled = torch.compile(of_labels, fullgraph=True)
    for ours, expected in zip(value_and_gradient(compiled, 1024), value_and_gradient(of_labels, 1024), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_graph_has_one_node_of_the_loss_and_serves_every_number_of_rows():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(of_labels, backend=counter, fullgraph=True, dynamic=True)
    for n in (12, 516, 40, 1024):  # the choice of the backend, dense or tiled, is not the graph's
        for ours, expected in zip(value_and_gradient(compiled, n), value_and_gradient(of_labels, n), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert counter.frame_count == 1
    nodes = [node for node in counter.graphs[0].graph.nodes if "mmcon" in str(node.target)]
    assert len(nodes) == 1


def test_the_operator_keeps_what_pytorch_asks_of_operators():
    kernel = LabelKernel(torch.arange(6.0), width=torch.tensor(2.0, requires_grad=True))
    for affinity in (SameLabel(torch.arange(6) // 2), kernel):
        rows, temperature = unit(6, 4).requires_grad_(), torch.tensor(0.2, requires_grad=True)
        for backend in ("dense", "tiled"):
            arguments = flatten((rows, None, affinity, temperature, None, (("backend", backend),)))
            torch.library.opcheck(torch.ops.mmcon.anchor_losses.default, tuple(arguments))


def test_what_a_node_cannot_carry_ends_the_graph_and_has_the_same_loss():
    def of_function(features, weight, labels):
        rows = normalized(features, weight)
        return weighted_supcon(rows, None, SameLabel(labels), temperature=0.1, similarity=lambda a, c: 2 * (a @ c.T))

    compiled = torch.compile(of_function, backend="aot_eager")
    for ours, expected in zip(value_and_gradient(compiled, 12), value_and_gradient(of_function, 12), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("outside", [False, True])
def test_values_are_checked_when_the_graph_runs(outside):
    similarity = (lambda a, c: a @ c.T) if outside else None

    @torch.compile(backend="aot_eager", fullgraph=not outside)
    def step(rows, weights, width):
        kernel = LabelKernel(weights[0], width=width)
        return weighted_supcon(rows, None, weights, temperature=0.1, similarity=similarity) + weighted_supcon(
            rows, None, kernel, temperature=0.1, similarity=similarity
        )

    one = torch.tensor(1.0)
    assert step(unit(4, 3), torch.ones(4, 4), one).isfinite()
    with pytest.raises(InputError, match=r"finite weights >= 0; got weights from -1\.0 to -1\.0"):
        step(unit(4, 3), -torch.ones(4, 4), one)
    with pytest.raises(InputError, match="a finite width above 0"):
        step(unit(4, 3), torch.ones(4, 4), -one)
    with pytest.raises(InputError, match=r"finite anchors; got 4 of 4 rows"):
        step(unit(4, 3) / 0, torch.ones(4, 4), one)


def test_anchors_without_positives_are_refused_in_a_graph():
    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(rows, labels):
        return weighted_supcon(rows, None, SameLabel(labels), temperature=0.1, no_positives="error")

    assert step(unit(4, 3), torch.tensor([0, 0, 1, 1])).isfinite()
    with pytest.raises(InputError, match="2 of 4 anchors without one, first at rows"):
        step(unit(4, 3), torch.tensor([0, 0, 1, 2]))


def test_parts_are_put_together_again():
    shared = torch.arange(3)
    value = (
        SameLabel(shared) * 0.5 + SameLabel(shared, shared),
        HardNegatives(0.25),
        [1, True, "a", None, torch.int64],
    )
    flat = flatten(value)
    assert len(flat.tensors) == 1
    assert (flat.numbers, flat.integers) == ([0.5, 0.25, 0.0], [1])
    affinity, weighting, rest = unflatten(flat)
    torch.testing.assert_close(affinity.dense(), 1.5 * torch.eye(3))
    assert weighting == HardNegatives(0.25)
    assert rest == (1, True, "a", None, torch.int64)
    assert flatten((shared, lambda: None)) is None

    class Own(SameLabel):
        pass

    assert flatten(Own(shared)) is None  # an unknown class may have more attributes


def test_the_node_is_no_part_of_cuda_graphs():
    for operator in (torch.ops.mmcon.anchor_losses, torch.ops.mmcon.anchor_losses_backward):
        assert torch.Tag.cudagraph_unsafe in operator.default.tags
