"""degrade and degrade_patches as torch ops: opcheck, torch.compile, dispatch modes, no gradient."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from qpt.errors import InputError
from qpt.ops.degrade import api, op
from qpt.ops.degrade.api import degrade, degrade_patches
from tests.programs import sample, smooth_images

IMAGES, PROGRAM = smooth_images(3, 33, 47), sample(3, views=2, seed=4)
BOXES = torch.tensor([[[0, 0], [17, 31]]] * len(PROGRAM), dtype=torch.int32)
FIELDS = api._fields(PROGRAM)
LAYOUTS = (torch.channels_last, torch.contiguous_format)


@pytest.mark.parametrize("threads", [None, 2])
def test_opcheck_degrade(threads):
    torch.library.opcheck(op.degrade, (IMAGES, *FIELDS, threads, "auto"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("patches", [2, 1, 0])
def test_opcheck_degrade_patches(dtype, channels_last, patches):
    options = (16, dtype, channels_last, None, "auto")
    torch.library.opcheck(op.degrade_patches, (IMAGES, *FIELDS, BOXES[:, :patches], *options))


def test_opcheck_without_rows():
    nothing = api._fields(PROGRAM[:0])
    torch.library.opcheck(op.degrade, (IMAGES[:0], *nothing, None, "auto"))
    options = (16, torch.float32, True, None, "auto")
    torch.library.opcheck(op.degrade_patches, (IMAGES[:0], *nothing, BOXES[:0], *options))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_compiles_once_without_a_graph_break(layout):
    """The gradient of an encoder after it is that of the eager call; other programs do not compile again."""
    counter = CompileCounterWithBackend("aot_eager")
    encoder = torch.nn.Conv2d(3, 4, 3)

    def step(images, program, boxes):
        patches = degrade_patches(images, program, boxes, 16, memory_format=layout)
        return degrade(images, program), encoder(patches.flatten(0, 1)).square().mean()

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for seed in range(3):
        program = sample(3, views=2, seed=seed)
        (rows, loss), (same_rows, same_loss) = step(IMAGES, program, BOXES), compiled(IMAGES, program, BOXES)
        assert torch.equal(rows, same_rows)
        gradients = [torch.autograd.grad(value, encoder.weight)[0] for value in (loss, same_loss)]
        torch.testing.assert_close(gradients[0], gradients[1])
    assert counter.frame_count == 1


def test_there_is_no_gradient():
    for call in (degrade_patches, torch.compile(degrade_patches, fullgraph=True, backend="aot_eager")):
        assert not call(IMAGES, PROGRAM, BOXES, 16).requires_grad


class RecordCalls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append(str(function))
        return function(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    """A subclass without behaviour of its own."""


def test_dispatch_modes_and_subclasses_get_the_op_and_plain_tensors_the_function():
    rows, patches = degrade(IMAGES, PROGRAM), degrade_patches(IMAGES, PROGRAM, BOXES, 16)
    with RecordCalls() as outer, RecordCalls() as inner:
        assert torch.equal(degrade(IMAGES, PROGRAM), rows)
        assert torch.equal(degrade_patches(IMAGES, PROGRAM, BOXES, 16), patches)
    for mode in (outer, inner):
        assert {"qpt.degrade.default", "qpt.degrade_patches.default"} <= set(mode.calls)
    assert torch.equal(degrade(IMAGES.as_subclass(Marked), PROGRAM), rows)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert degrade(fake.from_tensor(IMAGES), PROGRAM).shape == rows.shape


def test_the_op_refuses_what_the_function_refuses():
    """Values are checked when the op runs, since they are not known at compile time."""
    outside = replace(PROGRAM, source=PROGRAM.source + 3)
    compiled = torch.compile(lambda *arguments: degrade(*arguments), fullgraph=True, backend="aot_eager")
    with pytest.raises(InputError, match=r"degrade: program.source must be below the number of images, 3, got 5"):
        compiled(IMAGES, outside)
    with pytest.raises(InputError, match=r"degrade: images must be \(B, H, W, 3\) uint8"):
        op.degrade(IMAGES.float(), *FIELDS, None, "auto")
    with RecordCalls(), pytest.raises(InputError, match=r"memory_format must be torch.channels_last"):
        degrade_patches(IMAGES, PROGRAM, BOXES, 16, memory_format=torch.preserve_format)
