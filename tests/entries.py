"""A small call of every public entry, with its arguments in the form of a habit; there is no test in this file."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image

import qpt
from qpt import compat
from qpt.data.images import load_rgb
from qpt.evaluate.features import FeatureProtocol
from qpt.evaluate.finetune import FineTuning
from qpt.evaluate.regimes import EvaluationConfig
from qpt.evaluate.run import evaluate
from qpt.evaluate.table import read_table
from qpt.models.encoder import untrained_encoder
from tests.programs import smooth_images

IMAGES = smooth_images(4, 48, 56)
SPACE = qpt.DegradationSpace.preset("qpt")
PROGRAM = SPACE.sample_seeded(torch.tensor([1, 2, 3, 4]), views=2)
BOXES = torch.tensor([[[3, 4], [8, 9]]] * 8, dtype=torch.int32)
SEEDS = torch.tensor([5, 6, 7])
IDS = torch.arange(8) // 2
BATCH = torch.full((2, 3, 32, 32), 0.5)
QUERIES, KEYS, HELD = (
    F.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)), dim=1) for seed in range(3)
)


class Given:
    """Arguments in the form of a habit; here as they are. ``out`` is an empty folder, ``files`` one with a set and a
    run."""

    def __init__(self, files: Path, out: Path) -> None:
        self.files, self.out = files, out
        self.tensors: list[tuple[torch.Tensor, torch.Tensor]] = []

    def integer(self, value: int) -> Any:
        return value

    def number(self, value: float) -> Any:
        return value

    def path(self, value: Path) -> Any:
        return str(value)

    def tensor(self, value: torch.Tensor) -> Any:
        """Return a copy, which must be unchanged after the call."""
        self.tensors.append((value, value.clone()))
        return self.tensors[-1][1]

    def array(self, value: np.ndarray) -> Any:
        return value.copy()


class NumPyScalars(Given):
    def integer(self, value: int) -> Any:
        return np.int64(value)

    def number(self, value: float) -> Any:
        assert float(np.float32(value)) == value
        return np.float32(value)


class Paths(Given):
    def path(self, value: Path) -> Any:
        return Path(value)


class ReadOnly(Given):
    """Arrays that may not be written, and tensors that share memory with such."""

    def array(self, value: np.ndarray) -> Any:
        value = value.copy()
        value.setflags(write=False)
        return value

    def tensor(self, value: torch.Tensor) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that such a tensor must not be written
            self.tensors.append((value, torch.from_numpy(self.array(value.numpy()))))
        return self.tensors[-1][1]


class ArraysForTensors(ReadOnly):
    """NumPy arrays where tensors are expected."""

    def tensor(self, value: torch.Tensor) -> Any:
        return self.array(value.numpy())


def _degrade(given: Given) -> object:
    return [qpt.degrade(given.tensor(IMAGES), PROGRAM, threads=given.integer(2))]


def _degrade_patches(given: Given) -> object:
    size, threads = given.integer(32), given.integer(1)
    return [qpt.degrade_patches(given.tensor(IMAGES), PROGRAM, given.tensor(BOXES), size, threads=threads)]


def _degrade_pairs(given: Given) -> object:
    return [*qpt.degrade_pairs(given.tensor(IMAGES), PROGRAM, given.integer(2))]


def _reference_distance(given: Given) -> object:
    encoder = qpt.load_encoder(given.path(given.files / "run"))
    file = given.files / "set" / "images" / "cat0.png"
    pixels = given.array(load_rgb(file))
    turned = given.array(np.ascontiguousarray(load_rgb(file)[::-1]))
    most = given.integer(10**6)
    return [
        qpt.reference_distance(encoder, turned, given.path(file), max_pixels=most),
        qpt.reference_distance(encoder, turned, pixels),
    ]


def _sample(given: Given) -> object:
    torch.manual_seed(3)
    generator = torch.Generator("cpu").manual_seed(4)
    programs = [
        SPACE.sample(given.integer(3), views=given.integer(2)),
        SPACE.sample(3, views=2, generator=generator),
        SPACE.sample_seeded(given.tensor(SEEDS), given.integer(2), siblings=given.number(0.5)),
        SPACE.every_level(given.integer(1), seed=given.integer(7)),
        SPACE.single_ops([given.integer(seed) for seed in range(5 * len(SPACE.names))]),
    ]
    return [[program.ops, program.levels, program.params, program.seeds, program.source] for program in programs]


def _space(given: Given) -> object:
    path = given.path(given.out / "space.yaml")
    space = qpt.DegradationSpace(
        ops=("jpeg", "gamma"), max_ops=given.integer(2), pristine=given.number(0.25), min_ops=given.integer(1)
    )
    space.to_yaml(path)
    again = [qpt.DegradationSpace.from_yaml(path), qpt.DegradationSpace.named(path)]
    return [each.fingerprint() for each in (space, *again)] + [SPACE.fingerprint()]


def _program(given: Given) -> object:
    chains = [[("jpeg", given.integer(3))], [("gaussian_blur", [given.number(1.5)])]]
    program = qpt.Program.from_chains(chains, seeds=given.array(np.array([1, 2])), source=given.array(np.array([0, 1])))
    path = given.path(given.out / "program.npz")
    qpt.Program.concat([program, PROGRAM], source_offsets=given.array(np.array([0, 2]))).save(path)
    loaded = qpt.Program.load(path)
    part = loaded.select(given.array(np.array([0, 3])))
    return [loaded.params, loaded.source, part.seeds, str(loaded[given.integer(1)])]


def _loss(compute: Callable[[Given, torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[Given], object]:
    """Return an entry that gives a loss and, where there are gradients, those of queries and keys."""

    def entry(given: Given) -> object:
        queries, keys = given.tensor(QUERIES), given.tensor(KEYS)
        graded = isinstance(queries, torch.Tensor) and not torch.is_inference_mode_enabled()
        if graded:
            queries.requires_grad_(), keys.requires_grad_()
        loss = compute(given, queries, keys)
        if graded:
            loss.backward()
        return [loss.detach(), *([queries.grad, keys.grad] if graded else [])]

    return entry


def _contrastive(given: Given, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    ids, options = given.tensor(IDS), {"temperature": given.number(0.5), "same_image_weight": given.number(0.25)}
    return qpt.contrastive_loss(
        queries, keys, query_groups=ids, key_groups=ids, query_images=ids // 2, key_images=ids // 2,
        pool=given.tensor(HELD), pool_groups=given.tensor(IDS + 3), **options,
    )  # fmt: skip


def _module(given: Given, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    ids = given.tensor(IDS)
    module = qpt.QualityContrastiveLoss(given.number(0.5), learn_temperature=True, min_temperature=given.number(0.25))
    return module(queries, keys, query_groups=ids, key_groups=ids)


def _distributed(given: Given, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    dist.init_process_group("gloo", store=dist.FileStore(str(given.out / "store"), 1), rank=0, world_size=1)
    try:
        ids, temperature = given.tensor(IDS), given.number(0.5)
        return qpt.distributed_contrastive_loss(
            queries, keys, query_groups=ids, key_groups=ids, temperature=temperature
        )
    finally:
        compat.destroy_process_group()


def _info_nce(given: Given, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return qpt.info_nce(queries, keys, given.tensor(HELD), temperature=given.number(0.5))


def _supcon(given: Given, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return qpt.supcon(queries, given.tensor(IDS), temperature=given.number(0.5)) + 0 * keys.sum()


def _nt_xent(given: Given, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return qpt.nt_xent(queries, keys, temperature=given.number(0.5))


def _pool(given: Given) -> object:
    pool = qpt.NegativePool(given.integer(12), given.integer(16))
    for rows in (KEYS, HELD):
        pool.push(given.tensor(rows), pool.new_groups(given.integer(8)), given.tensor(IDS))
    state = pool.state_dict()
    loaded = qpt.NegativePool(12, 16)
    loaded.load_state_dict(state | {name: given.integer(state[name]) for name in ("pointer", "count")})
    loaded.push(KEYS[:3], loaded.new_groups(3))
    return [*pool.ring, *loaded.ring, loaded.state_dict()["next_group"], len(loaded), pool.memory_bytes]


def _config(given: Given, name: str) -> qpt.PretrainConfig:
    return qpt.PretrainConfig(
        data=given.path(given.files / "set" / "images"), out=given.path(given.out / name), arch="resnet18",
        width=given.integer(4), mode="moco", pool_size=given.integer(64), patch_size=given.integer(32),
        batch_images=given.integer(4), steps=given.integer(2), lr=given.number(0.125), optimizer="adamw",
        tensorboard=False, page=False, threads=given.integer(1), precision="float32",
    )  # fmt: skip


def _pretrain_config(given: Given) -> object:
    path = given.path(given.out / "config.yaml")
    _config(given, "run").save(path)
    loaded = qpt.PretrainConfig.load(path, data=given.path(given.out / "a"), out=given.path(given.out / "b"))
    return [(name, value) for name, value in vars(loaded).items() if name not in ("data", "out")]


def _pretrain(given: Given) -> object:
    done = qpt.pretrain(_config(given, "run"))
    return [done.step, *qpt.load_encoder(given.path(given.out / "run")).state_dict().values()]


def _load_encoder(given: Given) -> object:
    encoder = qpt.load_encoder(given.path(given.files / "run"))
    with torch.no_grad():
        return [*encoder.state_dict().values(), encoder(BATCH)]


def _scorer(given: Given) -> object:
    pixels, file = given.array(IMAGES[0].numpy()), given.files / "set" / "images" / "cat0.png"
    scorer = qpt.Scorer.load(given.path(given.files / "scorer.pt"), max_pixels=given.integer(10**6))
    tensor = given.tensor(IMAGES[:2].permute(0, 3, 1, 2).float() / 255)
    scores = [scorer(pixels), scorer(given.path(file)), scorer(Image.fromarray(load_rgb(file)))]
    scores += [scorer.in_dtype("bfloat16")(pixels), scorer.extrapolates(given.number(0.5))]
    return [*scores, scorer.as_metric()(tensor)]


def _fit(given: Given) -> object:
    table = read_table(given.path(given.files / "set" / "scores.csv"), root=given.path(given.files / "set"))
    encoder = untrained_encoder("resnet18", given.integer(4), given.integer(0))
    protocol = FeatureProtocol(given.integer(64), given.integer(4))
    scorer = qpt.Scorer.fit(encoder, table, protocol=protocol, cache=given.path(given.out), quiet=True)
    scorer.save(given.path(given.out / "scorer.pt"))
    loaded = qpt.Scorer.load(given.out / "scorer.pt")
    return [scorer.weights, scorer.intercept, str(scorer.read_out), scorer.mos_max, loaded(IMAGES[0].numpy())]


def _evaluate(given: Given) -> object:
    result = evaluate(
        [given.path(given.files / "run")], read_table(given.path(given.files / "set" / "scores.csv")),
        config=EvaluationConfig(
            splits=given.integer(2), label_shares=(), read_outs=("all, mean",),
            fine_tuning=FineTuning(epochs=given.integer(1), batch=given.integer(8), crop_px=given.integer(32)),
        ), untrained=given.integer(0),
        supervised=False, seed=given.integer(1), cache=given.path(given.out), quiet=True,
    )  # fmt: skip
    return [result["data"], result["methods"]]


#: Public name, or what it is called in the documentation -> a call of it.
ENTRIES: dict[str, Callable[[Given], object]] = {
    "degrade": _degrade,
    "degrade_patches": _degrade_patches,
    "degrade_pairs": _degrade_pairs,
    "reference_distance": _reference_distance,
    "DegradationSpace": _space,
    "DegradationSpace.sample": _sample,
    "Program": _program,
    "contrastive_loss": _loss(_contrastive),
    "QualityContrastiveLoss": _loss(_module),
    "distributed_contrastive_loss": _loss(_distributed),
    "info_nce": _loss(_info_nce),
    "nt_xent": _loss(_nt_xent),
    "supcon": _loss(_supcon),
    "NegativePool": _pool,
    "PretrainConfig": _pretrain_config,
    "pretrain": _pretrain,
    "load_encoder": _load_encoder,
    "Scorer": _scorer,
    "Scorer.fit": _fit,
    "evaluate": _evaluate,
}
