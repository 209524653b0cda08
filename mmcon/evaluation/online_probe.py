"""An online linear probe: trained along with the encoder, on detached features."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mmcon.errors import InputError


@final
class OnlineProbe(nn.Module):
    """A linear classifier on the features of each training step, with its own optimizer.

        probe = OnlineProbe(model.encoders["image"], classes=10)
        for batch in run.batches(loader):
            loss = objective(model(batch), batch)
            run.step(loss)
            run.note(**probe.update(batch.index["image"]["label"]))

    A forward hook on the encoder records the features, so that nothing is encoded twice. Passes without gradients (the
    first pass of gradient caching, an evaluation) are not recorded. The accuracy is on training views under a changing
    encoder: use it to monitor a run, not as a result.

    Args:
        encoder: a module with `feature_dim`.
        classes: number of classes.
        learning_rate: of the probe's AdamW.
    """

    def __init__(self, encoder: nn.Module, *, classes: int, learning_rate: float = 1e-2) -> None:
        super().__init__()
        width = getattr(encoder, "feature_dim", None)
        if not isinstance(width, int) or classes < 2:
            got = f"{type(encoder).__name__}, classes={classes}"
            raise InputError("OnlineProbe", expected="an encoder with `feature_dim`, and two classes or more", got=got)
        # Batch norm without parameters: the scale of features changes much while the encoder is trained.
        self.layers = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, classes))
        self.optimizer = torch.optim.AdamW(self.layers.parameters(), lr=learning_rate, weight_decay=0.0)
        self._features: list[Float[Tensor, "_ d"]] = []
        self._hook = encoder.register_forward_hook(self._record)

    def _record(self, encoder: nn.Module, inputs: Any, features: Float[Tensor, "n d"]) -> None:
        if encoder.training and torch.is_grad_enabled():
            self._features.append(features.detach().float())

    def update(self, labels: Int[Tensor, " n"]) -> dict[str, float]:
        """Train one step on the features recorded since the last update.

        Args:
            labels: of the recorded rows, in their order.

        Returns:
            "probe_loss" and "probe_top1" of these rows, before the step.
        """
        rows = sum(map(len, self._features))
        if rows != len(labels):
            self._features.clear()
            raise InputError(
                "OnlineProbe.update",
                expected=f"{len(labels)} rows encoded in training since the last update",
                got=str(rows),
                fix="call it once after each step, with the labels of the rows of the batch",
            )
        features = torch.cat(self._features)
        self._features.clear()
        with torch.enable_grad():
            logits = self.layers(features)
            loss = functional.cross_entropy(logits, labels.to(logits.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()
        correct = (logits.argmax(1) == labels.to(logits.device)).float().mean()
        return {"probe_loss": loss.item(), "probe_top1": correct.item()}

    def close(self) -> None:
        """Remove the hook from the encoder."""
        self._hook.remove()
        self._features.clear()

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state, so that the probe resumes with the run."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the optimizer's state."""
        self.optimizer.load_state_dict(state)
