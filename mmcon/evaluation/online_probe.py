"""A linear probe that learns along with stage one and sends no gradient to the encoder."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmcon.errors import InputError


@final
class OnlineProbe(nn.Module):
    """Classifies features as the encoder gives them in training, and learns by an optimizer of its own.

        probe = OnlineProbe(model.encoders["image"], classes=10)
        for batch in run.batches(loader):
            loss = objective(model(batch), batch)
            run.step(loss)
            run.note(**probe.update(batch.index["image"]["label"]))

    It watches the encoder, so that nothing is encoded twice; what runs without gradients (the first pass of gradient
    caching, an evaluation) is not watched. Its figure is of training views under a changing encoder: a sign of life,
    not a result.

    Args:
        encoder: a module with `feature_dim`.
        classes: how many there are.
        learning_rate: of the probe's own AdamW.
    """

    def __init__(self, encoder: nn.Module, *, classes: int, learning_rate: float = 1e-2) -> None:
        super().__init__()
        width = getattr(encoder, "feature_dim", None)
        if not isinstance(width, int) or classes < 2:
            got = f"{type(encoder).__name__}, classes={classes}"
            raise InputError("OnlineProbe", expected="an encoder with `feature_dim`, and two classes", got=got)
        # Features are centred and scaled, since their size changes a lot while an encoder learns.
        self.layers = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, classes))
        self.optimizer = torch.optim.AdamW(self.layers.parameters(), lr=learning_rate, weight_decay=0.0)
        self._seen: list[Tensor] = []
        self._watching = encoder.register_forward_hook(self._watch)

    def _watch(self, encoder: nn.Module, inputs: Any, features: Tensor) -> None:
        if encoder.training and torch.is_grad_enabled():
            self._seen.append(features.detach().float())

    def update(self, labels: Tensor) -> dict[str, float]:
        """Learn one step from what the encoder gave since the last one.

        Args:
            labels: `n`, of the rows that were encoded, in their order.

        Returns:
            "probe_loss" and "probe_top1" of these rows, before the step.
        """
        rows = sum(map(len, self._seen))
        if rows != len(labels):
            self._seen.clear()
            raise InputError(
                "OnlineProbe.update",
                expected=f"{len(labels)} rows encoded in training since the last update",
                got=str(rows),
                fix="call it once after each step, with the labels of the batch's rows",
            )
        features = torch.cat(self._seen)
        self._seen.clear()
        with torch.enable_grad():
            logits = self.layers(features)
            loss = functional.cross_entropy(logits, labels.to(logits.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()
        right = (logits.argmax(1) == labels.to(logits.device)).float().mean()
        return {"probe_loss": loss.item(), "probe_top1": right.item()}

    def close(self) -> None:
        """Stop watching the encoder."""
        self._watching.remove()
        self._seen.clear()

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state, so that the probe resumes with the run."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take back the optimizer's state."""
        self.optimizer.load_state_dict(state)
