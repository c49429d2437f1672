"""PyTorch modules: what of them travels, how it is copied, and what happens in training between merges.

``learner`` is the adapter, ``travelling`` chooses the tensors, ``host`` copies them to and from arrays, and
``steering`` reaches into the optimiser for FedProx and SCAFFOLD, ``resuming`` keeps its state between two
runs of a script.
"""

from __future__ import annotations

from konsil.learners.torch.learner import TorchLearner

__all__ = ["TorchLearner"]
