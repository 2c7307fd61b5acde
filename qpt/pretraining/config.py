"""The settings of a pre-training run: defaults, checks, YAML in and out.

Read by ``qpt pretrain`` (its flags have the names of these fields), written as ``config.yaml`` into the run, and
stored in the checkpoint. What the QPT paper (arXiv 2303.00521) does not publish has MoCo v2's value (arXiv 2003.04297).
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from qpt.errors import InputError, as_flag, check_int, check_number
from qpt.io import read_yaml, to_yaml
from qpt.runs.files import FREE_ON_RESUME

#: Former name -> field. A config with a former name loads with a FutureWarning, until the next minor version.
RENAMED = {"preset": "space", "keys_travel": "key_exchange"}
#: Smallest value of each field that is an integer.
_AT_LEAST = {
    **dict.fromkeys(("seed", "region_size", "resize_shorter", "steps", "epochs", "pool_size", "warmup_steps"), 0),
    **dict.fromkeys(("chunk_images", "threads", "workers", "cache_mib", "stall_seconds", "observe_every"), 0),
    **dict.fromkeys(("width", "projection_dim", "compositions", "patches", "patch_size", "batch_images"), 1),
    **dict.fromkeys(("accumulate", "log_every", "checkpoint_every", "keep_checkpoints"), 1),
}


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of one pre-training run.

    Args:
        data: folder of photographs, nested or not; or of WebDataset shards, a pattern or URL of them (docs/data.md).
        out: run directory to create.
        seed: seeds the initial weights, the data order, the regions, the boxes and the degradations.
        arch: encoder, resnet18 | resnet34 | resnet50 | efficientnet_lite0 | timm:NAME | torchvision:NAME.
        width: channels of a resnet's first stage; 64 is the standard network.
        init: weights to start from; empty for random ones. A run directory or checkpoint, a state dict (.pt, .pth,
            .safetensors), or a named encoder: efficientnet_lite0-imagenet,
            efficientnet_lite0-qpt, timm:NAME, torchvision:NAME. ``arch`` must be that of the weights.
        projection_dim: length D of queries and keys.
        head_input: features that the projection head reads: last (mean of the last stage) or stages (mean and standard
            deviation of all stages, normalised by a LayerNorm).
        mode: moco (keys from an EMA encoder, negative pool) or in_batch (one encoder, each patch is query and key).
        space: degradation space: a preset's name, or a YAML file of one.
        compositions: degraded views of each photograph per step; they are negatives of each other.
        patches: patches cut from each composition; in moco mode the first is the query, the others are its keys.
        positives: composition (patches of one composition are positives), or image (all patches of a photograph are,
            under whatever composition: what quality-aware pre-training must not do, for comparison).
        siblings: share of photographs whose second composition is the first one with another level of one op: negatives
            of each other that differ in nothing else.
        half_scale: share of compositions of which one patch, any of them, is seen at half scale: a square of twice the
            size around it, antialiased down to a patch. Regions of at least two patches.
        patch_size: side of a patch, pixels.
        region_size: side of the region cut from each photograph, pixels; 0 means twice patch_size.
        resize_shorter: resize photographs to this shorter side before cutting; 0 keeps the native resolution.
        iou_min: smallest overlap (intersection over union) of the first patch of a composition with each other one.
        iou_max: largest overlap of the first patch of a composition with each other one.
        boxes: shared (all compositions of a photograph use the same patch boxes) or independent.
        batch_images: photographs per step.
        steps: optimiser steps of the whole run; 0 means as many as `epochs` takes.
        epochs: passes over the photographs, when steps is 0.
        temperature: temperature of the loss.
        same_image_weight: weight of negatives that show the same photograph under another composition.
        in_batch_negatives: in moco mode, the other keys of the batch are negatives too (same-image ones among them).
        symmetric: in moco mode, also use every other patch as the query in its turn, the rest as its keys.
        pool_size: keys in the negative pool (moco mode); 0 for none.
        pool_dtype: storage type of the pool.
        momentum: decay of the EMA key encoder.
        optimizer: sgd (momentum 0.9), adamw, or lars (momentum 0.9; for large batches).
        lr: peak learning rate.
        encoder_lr_scale: rate of the encoder's last stage as a multiple of the head's.
        stage_lr_decay: rate of a stage as a multiple of the next stage's; below 1, early stages change less.
        distillation: weight of a term that keeps the mean of every channel of all stages near that of the encoder that
            the run starts from.
        regression: weight of a term for a second head, which predicts full-reference measures of each patch against
            its undegraded self, and the levels of its ops; patches of at least 8 pixels.
        graded_positives: width of the weights that make patches of other compositions of the batch positives too, the
            more so the nearer the levels (0 to 1) of their kinds of degradation; 0 for positives of one composition
            alone. Of one process; in moco mode with in_batch_negatives.
        two_trunks: save the initial encoder, frozen, beside the tuned one, as one encoder with the channels of both.
        freeze_batch_norm: keep the encoder's batch norm at the statistics that it starts with (of ``init``).
        weight_decay: weight decay; lars leaves biases and batch norm out of it.
        trust_coefficient: of lars: relative change of a layer's weights per step at a rate of 1.
        warmup_steps: linear warm-up, before the cosine decay to zero.
        chunk_images: photographs embedded at a time, by each process: memory is that of a chunk, the loss that of all
            (gradient caching, one more forward pass); 0 for the whole batch at once. Batch norm is over a chunk.
        accumulate: parts of the batch that have a loss of their own, one after another, before the update; of
            several processes each divides its own share.
        activation_checkpointing: keep only the input of each residual block, and compute the rest a second time.
        compile: compile the encoder with torch.compile.
        precision: arithmetic of the encoder; the loss is always float32. auto: bfloat16 on a GPU that has it, and on a
            CPU that has it if a trial at the start is a quarter faster than in float32; else float32 (config.yaml of
            the run says which). float16 scales the gradient.
        loss_precision: products of the loss's float32 embeddings. auto: float32 on the CPU, bf16x3 on a GPU, on whose
            tensor cores a number is the sum of two of bfloat16. ieee: float32. On a GPU also tf32x3 (more bits at half
            the rate) and tf32 (fewer).
        batch_norm: rows that encoders normalise over when chunks or processes share a batch. sync: a chunk of all
            processes; shuffled: a chunk of one process, and keys are assigned to the processes anew (moco mode); in
            both, keys are assigned to chunks anew, so that none shares one with its query. local: a chunk of one
            process, in order, where a key can be recognised by the statistics it shares with its query.
        key_exchange: exchange of keys between processes: gather (all at once) or ring (one block at a time).
        pool_layout: the pool of several processes: replicated (the same on all) or sharded (a part on each).
        device: auto, cpu, cuda, cuda:1, ...
        threads: CPU threads of a process; 0 means its share of the cores (part of the run: sums depend on it).
        workers: loader processes; 0 decodes in the main process.
        cache_mib: decoded photographs kept in memory, MiB for all processes of a machine together.
        stall_seconds: save and end the run when the loader gives nothing for this long; 0 waits for ever.
        log_every: steps between lines of log.csv.
        observe_every: steps between measurements of the embeddings (observations.jsonl); 0 for none.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: checkpoints to keep, the newest included; the best by training loss is kept besides.
        tensorboard: also write TensorBoard event files.
        page: also write index.html, a report of the run about itself, at its end and now and then before.
    """

    data: str
    out: str
    seed: int = 0
    arch: str = "resnet50"
    width: int = 64
    init: str = ""
    projection_dim: int = 128
    head_input: Literal["last", "stages"] = "last"
    mode: Literal["moco", "in_batch"] = "moco"
    space: str = "qpt"
    compositions: int = 2
    patches: int = 2
    positives: Literal["composition", "image"] = "composition"
    siblings: float = 0.0
    half_scale: float = 0.0
    patch_size: int = 160
    region_size: int = 0
    resize_shorter: int = 0
    iou_min: float = 0.1
    iou_max: float = 0.3
    boxes: Literal["shared", "independent"] = "shared"
    batch_images: int = 256
    steps: int = 0
    epochs: int = 200
    temperature: float = 0.2
    same_image_weight: float = 1.0
    in_batch_negatives: bool = True
    symmetric: bool = False
    pool_size: int = 65536
    pool_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    momentum: float = 0.999
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd"
    lr: float = 0.03
    encoder_lr_scale: float = 1.0
    stage_lr_decay: float = 1.0
    distillation: float = 0.0
    regression: float = 0.0
    graded_positives: float = 0.0
    two_trunks: bool = False
    freeze_batch_norm: bool = False
    weight_decay: float = 1e-4
    trust_coefficient: float = 0.001
    warmup_steps: int = 0
    chunk_images: int = 0
    accumulate: int = 1
    activation_checkpointing: bool = False
    compile: bool = False
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    loss_precision: Literal["auto", "ieee", "tf32", "tf32x3", "bf16x3"] = "auto"
    batch_norm: Literal["sync", "shuffled", "local"] = "sync"
    key_exchange: Literal["gather", "ring"] = "gather"
    pool_layout: Literal["replicated", "sharded"] = "replicated"
    device: str = "auto"
    threads: int = 0
    workers: int = 0
    cache_mib: int = 1024
    stall_seconds: int = 600
    log_every: int = 10
    observe_every: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    tensorboard: bool = True
    page: bool = True

    def __post_init__(self) -> None:
        from qpt.models.names import check_arch  # qpt.models loads torch, which the command line does without

        hints = get_type_hints(PretrainConfig)
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), hints[field.name]
            if kind is str and isinstance(value, os.PathLike):
                value = os.fspath(value)
                object.__setattr__(self, field.name, value)
            choices = get_args(kind)
            if choices:
                self._require(field.name, f"one of {', '.join(choices)}", value in choices)
            elif kind is float:
                object.__setattr__(self, field.name, check_number("pretrain", field.name, value))
            elif kind is int:
                object.__setattr__(self, field.name, check_int("pretrain", field.name, value, _AT_LEAST[field.name]))
            elif kind is bool:
                self._require(field.name, "a bool", as_flag(value) is not None)
                object.__setattr__(self, field.name, bool(value))
            else:
                self._require(field.name, f"a {kind.__name__}", isinstance(value, kind))
        check_arch("pretrain", self.arch, self.width)
        for name in ("same_image_weight", "weight_decay", "encoder_lr_scale", "distillation", "regression"):
            self._require(name, ">= 0", getattr(self, name) >= 0)
        for name in ("temperature", "lr", "trust_coefficient", "stage_lr_decay"):
            self._require(name, "> 0", getattr(self, name) > 0)
        self._require("steps", "> 0 when epochs is 0", self.steps > 0 or self.epochs > 0)
        enough = self.batch_images >= 2
        self._require("batch_images", ">= 2 (batch norm and negatives need at least two samples)", enough)
        whole = self.batch_images % self.accumulate == 0
        self._require("batch_images", f"a multiple of accumulate ({self.accumulate})", whole)
        self._require("patches", ">= 2 (a query and a key)", self.patches >= 2)
        several = self.positives == "composition" or self.compositions > 1
        self._require("compositions", ">= 2 when positives is image", several)
        self._require("siblings", "in [0, 1]", 0 <= self.siblings <= 1)
        negatives = self.compositions > 1 and self.positives == "composition"
        self._require("siblings", "0 without two compositions that are negatives", negatives or not self.siblings)
        self._require("half_scale", "in [0, 1]", 0 <= self.half_scale <= 1)
        room = self.region >= 2 * self.patch_size
        self._require("half_scale", "0 in regions smaller than two patches", room or not self.half_scale)
        large = not self.regression or self.patch_size >= 8  # SMALLEST_PATCH_PX of qpt.evaluate.measures
        self._require("regression", "0 with patches of less than 8 pixels", large)
        usable = self.graded_positives == 0 or self.graded_positives >= 1e-6  # LEAST_WIDTH of the loss
        self._require("graded_positives", "0 or at least 1e-06", usable)
        pairs = self.mode == "in_batch" or self.in_batch_negatives
        self._require("graded_positives", "0 without in_batch_negatives", pairs or not self.graded_positives)
        self._require("momentum", "in [0, 1]", 0 <= self.momentum <= 1)

    def check_processes(self, size: int) -> None:
        """Raise InputError unless ``size`` processes can share a run of these settings."""
        parts = size * self.accumulate
        whole = self.batch_images % parts == 0
        self._require("batch_images", f"a multiple of {parts} (processes x accumulate) with {size} processes", whole)
        self._require("graded_positives", f"0 with {size} processes", size == 1 or not self.graded_positives)
        if self.pool_layout == "sharded" and self.mode == "moco":
            rule = f"a multiple of the number of processes with {size} processes"
            self._require("pool_size", rule, self.pool_size % size == 0)
        if self.mode == "in_batch" and size > 1:  # a key has a gradient in this mode, and stays in its process
            rule = f"sync or local in in_batch mode with {size} processes"
            self._require("batch_norm", rule, self.batch_norm != "shuffled")

    def check_device(self, kind: str) -> None:
        """Raise InputError unless a device of this kind ("cpu", "cuda") has what is asked of it."""
        everywhere = self.loss_precision in ("auto", "ieee")
        self._require("loss_precision", f"auto or ieee on {kind}", kind == "cuda" or everywhere)

    def _require(self, name: str, rule: str, holds: bool) -> None:
        if not holds:
            raise InputError(f"pretrain: {name} must be {rule}, got {getattr(self, name)!r:.200}")

    @property
    def region(self) -> int:
        """Side of the region in pixels."""
        return self.region_size or 2 * self.patch_size

    @property
    def rows_per_group(self) -> int:
        """Adjacent rows of a batch, one per composition of an image, that form one group of positives."""
        return self.compositions if self.positives == "image" else 1

    def save(self, path: str | Path) -> None:
        """Write the settings as YAML, without ``data`` and ``out``: a recipe that another run can be started from."""
        settings = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("data", "out")}
        Path(path).write_text(to_yaml(settings), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> PretrainConfig:
        """Read a YAML file of settings; keyword arguments (``data`` and ``out`` among them) win over it.

        Raises InputError for an unreadable file, an unknown field or a value out of range.
        """
        try:
            fields = read_yaml(path)
        except (OSError, ValueError) as error:
            raise InputError(f"pretrain: config must be a readable YAML file, got {path}: {error}") from error
        if not isinstance(fields, dict):
            raise InputError(
                f"pretrain: config must be a YAML mapping of fields, got {type(fields).__name__} in {path}"
            )
        hints = get_type_hints(cls)
        for name, value in list(fields.items()):
            del fields[name]
            name = str(name).replace("-", "_")
            whole = isinstance(value, float) and value.is_integer() and hints.get(RENAMED.get(name, name)) is int
            fields[name] = int(value) if whole else value  # 1e3 is as good as 1000
        return cls.from_dict({**fields, **overrides})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PretrainConfig:
        """Make a config of a mapping, ``data`` and ``out`` included. Raises InputError for missing or unknown names."""
        for old, new in RENAMED.items():
            if old in fields:
                warnings.warn(f"pretrain: config key {old} is now called {new}", FutureWarning, stacklevel=2)
                fields = {new if name == old else name: value for name, value in fields.items()}
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise InputError(f"pretrain: config must hold only known fields, got {', '.join(map(str, unknown))}")
        missing = sorted({"data", "out"} - set(fields))
        if missing:
            raise InputError(f"pretrain: config must give {' and '.join(missing)}")
        return cls(**fields)

    def differences(self, other: PretrainConfig) -> list[str]:
        """List the fields that the result depends on and that differ: ``name: own -> other's``."""
        return [
            f"{field.name}: {getattr(self, field.name)!r} -> {getattr(other, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.name not in FREE_ON_RESUME and getattr(self, field.name) != getattr(other, field.name)
        ]
