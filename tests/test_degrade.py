"""degrade and degrade_patches: a row has the same bytes in any batch, and patches are crops of the degraded images.

test_ops.py tests what each op computes, test_degrade_errors.py what is refused.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpt.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from qpt.degradations import op_table
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES
from qpt.degradations.program import Program
from qpt.ops.degrade.api import degrade, degrade_patches
from tests.programs import SPACE, sample, smooth_images


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, Program, torch.Tensor]:
    """20 images of an odd size, two chains each, and the degraded rows."""
    images, program = smooth_images(20, 61, 83), sample(20)
    return images, program, degrade(images, program)


def test_output_is_fresh_and_the_input_untouched(batch):
    images, program, _ = batch
    before = images.clone()
    first, second = degrade(images, program), degrade(images, program)
    assert torch.equal(first, second)
    assert first.shape == (40, 61, 83, 3)
    assert first.dtype == torch.uint8
    first.zero_()
    assert torch.equal(images, before)
    assert second.any()


def test_pristine_rows_are_copies(batch):
    images = batch[0]
    pristine = Program.from_chains([[], []], seeds=[1, 2], source=[3, 0])
    for program in (pristine, Program.concat([pristine, batch[1]])[:2]):  # without slots, and with unused ones
        assert torch.equal(degrade(images, program), images[[3, 0]])


def test_every_op_changes_an_image_at_every_level(batch):
    images, program = batch[0][:1], SPACE.every_level(1, seed=3)
    unchanged = (degrade(images, program) == images).flatten(1).all(dim=1)
    assert [str(chain) for chain, same in zip(program, unchanged.tolist(), strict=True) if same] == []


@given(rows=st.lists(st.integers(0, 39), max_size=12), threads=st.integers(1, 5))
def test_a_row_has_the_same_bytes_in_any_batch_order_and_thread_count(batch, rows, threads):
    images, program, expected = batch
    assert torch.equal(degrade(images, program.select(rows), threads=threads), expected[rows])


@given(row=st.integers(0, 39), threads=st.integers(1, 3))
def test_a_row_has_the_same_bytes_alone_with_its_image(batch, row, threads):
    images, program, expected = batch
    source = int(program.source[row])
    alone = replace(program[row : row + 1], source=torch.zeros(1, dtype=torch.int32))
    assert torch.equal(degrade(images[source : source + 1], alone, threads=threads), expected[row : row + 1])


def test_threads_of_torch_do_not_matter(batch):
    images, program, expected = batch
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            assert torch.equal(degrade(images, program), expected)
    finally:
        torch.set_num_threads(before)


def test_saved_and_loaded_program_gives_the_same_bytes(batch, tmp_path):
    images, program, expected = batch
    program.save(tmp_path / "program.npz")
    assert torch.equal(degrade(images, Program.load(tmp_path / "program.npz")), expected)


def test_more_slots_change_nothing(batch):
    images, program, expected = batch
    wide = Program.from_chains([[("hue", 1)] * 9], seeds=[0])
    assert torch.equal(degrade(images, Program.concat([program, wide]))[:-1], expected)


def test_unused_slots_may_stand_anywhere(batch):
    images = batch[0]
    program = Program.from_chains([[("jpeg", 2), ("hue", 5)]], seeds=[4])
    spread = Program(
        torch.tensor([[-1, program.ops[0, 0], -1, program.ops[0, 1]]], dtype=torch.int16),
        torch.tensor([[0, 2, 0, 5]], dtype=torch.int8),
        torch.stack([torch.zeros(4), program.params[0, 0], torch.zeros(4), program.params[0, 1]])[None],
        program.seeds,
        program.source,
        program.table,
    )
    assert torch.equal(degrade(images, spread), degrade(images, program))


def test_chains_run_first_to_last(batch):
    images = batch[0][:1]
    chain = [("jpeg", 4), ("contrast", 3), ("rescale_bilinear", 2), ("hue", 2)]
    whole = Program.from_chains([chain], seeds=[11])
    stepwise = images
    for slot in range(len(chain)):
        one = replace(whole, ops=whole.ops[:, slot : slot + 1], levels=whole.levels[:, slot : slot + 1])
        stepwise = degrade(stepwise, replace(one, params=whole.params[:, slot : slot + 1]))
    assert torch.equal(degrade(images, whole), stepwise)
    backwards = Program.from_chains([chain[::-1]], seeds=[11])
    assert not torch.equal(degrade(images, backwards), stepwise)


def test_noise_follows_the_seed_and_the_slot(batch):
    images = batch[0][:1]
    noisy = Program.from_chains([[("gaussian_noise", 3)]] * 3, seeds=[5, 5, 6])
    first, same, other = degrade(images, noisy)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    later = replace(noisy[:1], ops=torch.tensor([[-1, noisy.ops[0, 0]]], dtype=torch.int16))
    later = replace(later, levels=torch.tensor([[0, 3]], dtype=torch.int8))
    later = replace(later, params=torch.stack([torch.zeros(4), noisy.params[0, 0]])[None])
    assert not torch.equal(degrade(images, later)[0], first)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 17), (17, 1), (2, 3), (8, 8), (16, 33)])
def test_small_images(height, width):
    images = smooth_images(3, height, width)
    program = Program.concat([SPACE.every_level(3, seed=1), sample(3, views=4, seed=2)])
    rows = degrade(images, program)
    assert rows.shape == (len(program), height, width, 3)
    order = torch.randperm(len(program), generator=torch.Generator().manual_seed(0))
    assert torch.equal(degrade(images, program.select(order), threads=2), rows[order])


def test_non_contiguous_images_are_accepted(batch):
    images, program, expected = batch
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    strided = torch.zeros(20, 61, 166, 3, dtype=torch.uint8)[:, :, ::2]
    strided.copy_(images)
    for view in (planar, strided):
        assert not view.is_contiguous()
        assert torch.equal(degrade(view, program), expected)


def test_empty_batches():
    images, empty = smooth_images(2, 8, 9), sample(0)
    assert degrade(images[:0], empty).shape == (0, 8, 9, 3)
    assert degrade(images, empty).shape == (0, 8, 9, 3)
    boxes = torch.zeros(0, 2, 2, dtype=torch.int32)
    assert degrade_patches(images[:0], empty, boxes, 4).shape == (0, 2, 3, 4, 4)
    no_patches = torch.zeros(2, 0, 2, dtype=torch.int32)
    assert degrade_patches(images, sample(2, views=1), no_patches, 4).shape == (2, 0, 3, 4, 4)


def random_boxes(rows: int, patches: int, height: int, width: int, size: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, [height - size + 1, width - size + 1], (rows, patches, 2))
    corners[0, 0], corners[-1, -1] = 0, (height - size, width - size)  # both extreme corners
    return torch.from_numpy(corners.astype(np.int32))


@pytest.mark.parametrize("size", [1, 32, 61])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_degrade_patches_is_degrade_then_crop_then_normalise(batch, size, memory_format, dtype):
    images, program, rows = batch
    boxes = random_boxes(40, 3, 61, 83, size)
    patches = degrade_patches(images, program, boxes, size, dtype=dtype, memory_format=memory_format)
    assert patches.shape == (40, 3, 3, size, size)
    assert patches.dtype == dtype
    assert patches.flatten(0, 1).is_contiguous(memory_format=memory_format)
    assert patches.flatten(0, 1).data_ptr() == patches.data_ptr()
    work = np.float64 if dtype == torch.float64 else np.float32
    mean, std = np.array(IMAGENET_MEAN, work), np.array(IMAGENET_STD, work)
    for row in range(40):
        for patch, (top, left) in enumerate(boxes[row].tolist()):
            crop = rows[row, top : top + size, left : left + size].numpy()
            if dtype != torch.uint8:
                crop = (crop.astype(work) / work(255) - mean) / std
            expected = torch.from_numpy(crop.transpose(2, 0, 1).copy()).to(dtype)
            assert torch.equal(patches[row, patch], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_cuda_gives_the_bytes_of_the_cpu(batch, dtype, memory_format):
    images, program, expected = batch
    chains = [[(name, level)] for name in NAMES for level in range(1, LEVELS + 1)]
    alone = Program.from_chains(chains, seeds=range(len(chains)))
    assert torch.equal(degrade(images.cuda(), program, backend="cuda").cpu(), expected)
    for part in (program, alone):
        assert torch.equal(degrade(images.cuda(), part, backend="cuda").cpu(), degrade(images, part))
        boxes = random_boxes(len(part), 2, 61, 83, 20)
        on_cpu, on_cuda = (
            degrade_patches(x, part, boxes, 20, dtype=dtype, memory_format=memory_format, backend=x.device.type)
            for x in (images, images.cuda())
        )
        assert torch.equal(on_cuda.cpu(), on_cpu)


@pytest.mark.parametrize("name", [row.name for row in DEGRADATIONS if row.halo != "whole"])
def test_halo_covers_everything_a_pixel_depends_on(name):
    entry = DEGRADATIONS[op_table.op_id(name)]
    images, other = smooth_images(1, 64, 72, seed=1), smooth_images(1, 64, 72, seed=2)
    for level in range(1, LEVELS + 1):
        program = Program.from_chains([[(name, level)]], seeds=[level])
        halo = entry.halo_px(program.params[0, 0].tolist())
        whole = degrade(images, program)
        for y, x in ((31, 33), (32, 32), (0, 47), (63, 71), (30, 0)):
            near = torch.zeros(64, 72, dtype=torch.bool)
            near[max(0, y - halo) : y + halo + 1, max(0, x - halo) : x + halo + 1] = True
            changed = torch.where(near[None, ..., None], images, other)
            assert torch.equal(degrade(changed, program)[0, y, x], whole[0, y, x]), (level, y, x)
