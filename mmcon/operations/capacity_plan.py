"""Estimates of the memory, network traffic and time of a step on many devices.

    plan = Plan.measure("resnet50", image_size=224, batch_size=65_536, world_size=1024, precision="bf16")
    print(plan.describe())

The encoder is built and embeds a few rows on the CPU; the rest is arithmetic. Memory is that of one rank at the peak of
a step. Traffic is received by one rank in a step, with ring algorithms. Times assume a share of the device's peak and
the rate of the slowest link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import ConfigError
from mmcon.models.encoders import create_encoder
from mmcon.operations.memory_budget import (
    GIB,
    PASSES,
    RESERVED,
    Cost,
    Memory,
    activation_bytes,
    byte_count,
    forward_operations,
)

#: Bytes of a float32 number, in which weights, gradients and embeddings are kept under every precision.
FLOAT = 4
#: Numbers of an optimizer's state for each weight.
STATES = {"sgd": 1, "lars": 1, "adamw": 2}
#: Operations a second at the makers' stated dense peak in bfloat16, memory in GiB, and GB a second between the devices
#: of a node, each way.
DEVICES = {"A100": (312e12, 80, 300.0), "H100": (989e12, 80, 450.0), "H200": (989e12, 141, 450.0)}
#: The assumed share of the peak.
ACHIEVED = 0.2
#: Bytes of the index columns of each gathered row (epoch, sample, occurrence, view, label), int64.
TABLE_BYTES = 5 * 8
#: Numbers that the tiled loss keeps for each anchor and for each candidate, beside their gradients.
ANCHOR_NUMBERS = 8
#: Rows and columns of a tile, and the number of tiles in memory at once.
TILE, TILES = 704, 4

Engine = Literal["ddp", "fsdp2"]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one rank receives in a step.

    Attributes:
        rows: gathered embeddings and index columns, forward.
        row_gradients: gradients of embeddings, summed over ranks, backward.
        gradients: of the weights.
        weights: gathered for use if they are sharded (FSDP2).
    """

    rows: int | float
    row_gradients: int | float
    gradients: int | float
    weights: int | float

    @property
    def total(self) -> int | float:
        """All bytes."""
        return self.rows + self.row_gradients + self.gradients + self.weights


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on many devices.

    Attributes:
        encoder: its name.
        parameters: the number of weights of the trained network.
        row_bytes: bytes of the activations of a row for the backward pass, the view included.
        operations: of a forward pass of a row.
        batch_size: the global batch in samples.
        views: of each sample.
        world_size: the number of ranks, one per device.
        per_node: devices per node.
        embedding_dim: width of the embeddings.
        chunk_rows: rows embedded at once (gradient caching), or None for all rows of a rank.
        queue_rows: rows of a queue.
        momentum_encoder: whether an EMA copy of the network embeds every view too.
        optimizer: sgd, lars or adamw.
        engine: ddp, with full copies on each rank, or fsdp2, with shards.
        precision: no, bf16 or fp16.
        device: a name of `DEVICES`.
        network_gb_per_second: between nodes, for each device, each way.
    """

    encoder: str
    parameters: int
    row_bytes: int | float
    operations: int | float
    batch_size: int
    views: int = 2
    world_size: int = 1
    per_node: int = 8
    embedding_dim: int = 128
    chunk_rows: int | None = None
    queue_rows: int = 0
    momentum_encoder: bool = False
    optimizer: str = "lars"
    engine: Engine = "ddp"
    precision: str = "bf16"
    device: str = "H100"
    network_gb_per_second: int | float = 50.0

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            below = self.batch_size - self.batch_size % self.world_size
            raise ConfigError(
                "mmcon plan",
                expected="a batch size that is divisible by the world size",
                got=f"--batch-size {self.batch_size} over --gpus {self.world_size}",
                fix=f"--batch-size {below or self.world_size}",
            )
        for flag, value, known in (("--optimizer", self.optimizer, STATES), ("--device", self.device, DEVICES)):
            if value not in known:
                raise ConfigError(f"mmcon plan {flag}", expected=f"one of {', '.join(known)}", got=repr(value))
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise ConfigError("mmcon plan --chunk-rows", expected="1 or more", got=str(self.chunk_rows))

    @staticmethod
    def measure(
        encoder: str, *, image_size: int, precision: str = "bf16", embedding_dim: int = 128, **settings: Any
    ) -> Plan:
        """Build the encoder with a head of two layers, and measure the memory and operations of a row on the CPU.

        Args:
            encoder: an encoder of images by name.
            image_size: side of the views in pixels.
            precision: bf16 and fp16 are both measured in bf16, which CPUs support.
            embedding_dim: width of the embeddings.
            settings: the other attributes.
        """
        built = create_encoder(encoder, image_size=image_size)
        width: Any = built.feature_dim
        network = nn.Sequential(built, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embedding_dim))
        channels = int(getattr(built, "in_channels", 3))

        def forward(rows: int) -> Float[Tensor, "{rows} d"]:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision != "no"):
                return network(torch.zeros(rows, channels, image_size, image_size))

        held = [*network.parameters(), *network.buffers()]
        view = channels * image_size**2 * FLOAT
        return Plan(
            encoder=encoder,
            parameters=byte_count(network.parameters()) // FLOAT,
            row_bytes=activation_bytes(forward, parameters=held) + view,
            operations=forward_operations(forward),
            embedding_dim=embedding_dim,
            precision=precision,
            **settings,
        )

    # --- memory and traffic ---

    @property
    def rows(self) -> int:
        """Rows of one rank."""
        return self.batch_size * self.views // self.world_size

    @property
    def candidates(self) -> int:
        """Candidates of every anchor: the rows of all ranks and of the queue."""
        return self.batch_size * self.views + self.queue_rows

    @property
    def embedded(self) -> int:
        """Rows whose activations are in memory at once."""
        return min(self.rows, self.chunk_rows or self.rows)

    @property
    def memory(self) -> Memory:
        """Bytes of one rank at the peak of a step."""
        weights = self.parameters * FLOAT
        shards = self.world_size if self.engine == "fsdp2" else 1
        # DDP sums gradients in buckets of their own; autocast keeps a half-precision copy of the weights.
        buckets = weights if self.engine == "ddp" and self.world_size > 1 else 0
        halves = weights // 2 if self.precision != "no" else 0
        queue = self.queue_rows * (self.embedding_dim * FLOAT + TABLE_BYTES)
        momentum = weights if self.momentum_encoder else 0
        return Memory(
            parameters=weights // shards,
            gradients=weights // shards,
            optimizer=STATES[self.optimizer] * weights // shards,
            copies=buckets + halves + queue + momentum + self.loss_bytes,
            activations_per_row=self.row_bytes,
            rows=self.embedded,
        )

    @property
    def loss_bytes(self) -> int:
        """Bytes of the tiled loss on one rank: gathered rows with gradients and index columns, and a few tiles."""
        gathered = 0 if self.world_size == 1 else self.candidates * (self.embedding_dim * FLOAT + TABLE_BYTES)
        gradients = (self.candidates + self.rows) * self.embedding_dim * FLOAT
        numbers = (self.candidates + self.rows) * ANCHOR_NUMBERS * FLOAT
        tiles = TILES * min(TILE, self.rows) * min(TILE, self.candidates) * FLOAT
        return gathered + gradients + numbers + tiles

    @property
    def dense_loss_bytes(self) -> int:
        """Bytes of one float32 matrix of similarities; a dense loss keeps several."""
        return self.rows * self.candidates * FLOAT

    @property
    def traffic(self) -> Traffic:
        """Bytes that one rank receives in a step."""
        others = (self.world_size - 1) / self.world_size
        weights, rows = self.parameters * FLOAT * others, self.batch_size * self.views * others
        whole = self.engine == "ddp"
        return Traffic(
            rows=rows * (self.embedding_dim * FLOAT + TABLE_BYTES),
            # A reduce-scatter: each rank receives the summed gradients of its own rows.
            row_gradients=rows * self.embedding_dim * FLOAT,
            # A ring all-reduce is a reduce-scatter and an all-gather.
            gradients=2 * weights if whole else weights,
            weights=0 if whole else 2 * weights,
        )

    # --- time ---

    @property
    def cost(self) -> Cost:
        """Operations of a step over all ranks, as an epoch of one batch."""
        passes = PASSES + bool(self.chunk_rows and self.chunk_rows < self.rows) + self.momentum_encoder
        return Cost(
            samples=self.batch_size, views=self.views, epochs=1, operations=self.operations, passes=passes,
            device=self.device, peak=DEVICES[self.device][0], share=ACHIEVED,
        )  # fmt: skip

    @property
    def computing_seconds(self) -> float:
        """Computing time of a step on one rank: the encoder at the assumed share, and the four products of the loss."""
        loss = 8 * self.rows * self.candidates * self.embedding_dim
        return self.cost.hours * 3600 / self.world_size + loss / (DEVICES[self.device][0] * ACHIEVED)

    @property
    def network_seconds(self) -> float:
        """Network time of a step over the slowest link, without overlap with computing."""
        within = DEVICES[self.device][2]
        rate = within if self.world_size <= self.per_node else min(within, self.network_gb_per_second)
        return self.traffic.total / (rate * 1e9)

    def describe(self) -> str:
        """The estimate as text."""
        memory, traffic, device_gib = self.memory, self.traffic, DEVICES[self.device][1]
        fit = memory.rows_that_fit(device_gib * GIB)
        lines = [
            f"{self.encoder}: {self.parameters / 1e6:.1f} million weights, {self.operations / 1e9:.1f} GFLOP a row;"
            f" {self.batch_size:,} samples × {self.views} views over {self.world_size:,} {self.device}"
            f" by {self.engine} in {'float32' if self.precision == 'no' else self.precision}",
            f"memory of one rank, {self.rows:,} rows of which {self.embedded:,} at once:",
            memory.describe(),
            f"  of the copies, the loss takes {self.loss_bytes / GIB:.2f} GiB against {self.candidates:,} candidates"
            f" (one matrix of similarities would be {self.dense_loss_bytes / GIB:.2f} GiB)",
            self._verdict(memory, fit, device_gib),
        ]
        if self.world_size > 1:
            named = {
                "embeddings and tables": traffic.rows,
                "their gradients": traffic.row_gradients,
                "gradients of weights": traffic.gradients,
                "weights": traffic.weights,
            }
            lines.append("received by one rank in a step:")
            lines += [f"  {name:<22} {size / 2**20:10.1f} MiB" for name, size in named.items() if size]
        lines.append(
            f"a step, estimated: {self.computing_seconds * 1e3:,.0f} ms of computing at {ACHIEVED:.0%} of the peak,"
            f" {self.network_seconds * 1e3:,.0f} ms of network without overlap"
        )
        return "\n".join(lines)

    def _verdict(self, memory: Memory, fit: int, device_gib: int) -> str:
        available = f"  {device_gib} GiB less {RESERVED:.0%}"
        if not fit:
            return (
                f"{available} do not hold the weights and the loss: use fsdp2, fewer candidates, or a smaller encoder"
            )
        if fit >= self.embedded:
            return f"{available} are enough ({fit:,} rows would fit at once)"
        return f"{available} hold {fit:,} rows at once: use --chunk-rows {2 ** int(math.log2(fit))} or more devices"
