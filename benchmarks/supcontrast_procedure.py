"""SupContrast's published procedure as a plain PyTorch script: the peer of `time_to_accuracy.py`.

From the defaults of its main_supcon.py (HobbitLong/SupContrast; the values are its own, the code is not): two crops by
torchvision on PIL images (area from .2, flip, colour jitter .4 .4 .4 .1 with probability .8, gray .2), batches of 256,
SGD with momentum .9 and weight decay 1e-4, learning rate .05 divided by ten at 70, 80 and 90 % of the epochs,
temperature .07, a head of two layers, worker processes (its 16, or one a core where there are fewer).

Deviations: images keep the size of the data (32 is CIFAR's), the encoder normalizes them, and the learning rate decays
at a step instead of at the end of an epoch, since a short run has few epochs.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

BATCH_SIZE, TEMPERATURE, LEARNING_RATE = 256, 0.07, 0.05
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
DECAY_AT, DECAY_BY = (0.7, 0.8, 0.9), 0.1
WORKERS = 16


class TwoCrops(Dataset[tuple[Tensor, Tensor, int]]):
    """Two random crops of each image `h w` of a stack of bytes, and its label."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.numpy(), labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(images.shape[-1], scale=(0.2, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image = Image.fromarray(self.images[index])
        return self.transform(image), self.transform(image), self.labels[index]


def supcon(z: Tensor, labels: Tensor) -> Tensor:
    """L_out of unit rows `n d` over the full n × n matrix, as in its SupConLoss."""
    logits = z @ z.T / TEMPERATURE
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    others = 1 - torch.eye(len(z), device=z.device)
    positives = (labels[:, None] == labels).float() * others
    log_share = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    # Its factor temperature / base_temperature is 1 at the default temperature.
    return -((positives * log_share).sum(1) / positives.sum(1)).mean()


def train(
    encoder: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
) -> float:
    """Train the encoder in place, and return the seconds of training.

    Args:
        encoder: from images `n c h w` in [0, 1] to features `n feature_dim`.
        images: `n h w` uint8.
        labels: `n` int64.
        epochs: of the whole schedule.
        learning_rate: before the first decay.
        seed: torch's global seed, as in plain scripts.
        device: device of the training.
    """
    torch.manual_seed(seed)
    width: Any = encoder.feature_dim
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, 128))
    model = nn.ModuleList([encoder, head]).to(device)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    workers = min(WORKERS, len(os.sched_getaffinity(0)))
    loader = DataLoader(
        TwoCrops(images, labels), BATCH_SIZE, shuffle=True, num_workers=workers, pin_memory=device.type == "cuda"
    )
    milestones = [round(share * epochs * len(loader)) for share in DECAY_AT]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, DECAY_BY)
    began = time.perf_counter()
    for _ in range(epochs):
        for first, second, y in loader:
            x = torch.cat([first, second]).to(device, non_blocking=True)
            z = functional.normalize(head(encoder(x)), dim=1)
            loss = supcon(z, y.repeat(2).to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
