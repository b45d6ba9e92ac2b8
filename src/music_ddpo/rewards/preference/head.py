"""TuneJury's head: an MLP from a CLAP audio embedding to a preference score (arXiv 2606.17006)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn

from music_ddpo.core.errors import UserError, in_one_line


class PreferenceHead(nn.Sequential):
    """Linear, BatchNorm, ReLU and Dropout for each hidden layer, then Linear to one score.

    Trained with the pairwise logistic loss: people prefer clip a to clip b with probability sigmoid(a - b). So only
    differences of scores mean something.

    Parameters
    ----------
    widths
        Of the input, of each hidden layer, and of the output, which is 1.
    """

    def __init__(self, *widths: int):
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths[:-1]):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.3)]
        super().__init__(*layers, nn.Linear(widths[-2], widths[-1]))
        self.widths = widths

    @classmethod
    def of_states(cls, states: Mapping[str, torch.Tensor], name: str) -> PreferenceHead:
        """The head that a state dict belongs to: widths, and the prefix of the keys, are read from it.

        Parameters
        ----------
        name
            The file, for errors.

        Raises
        ------
        UserError
            If it is not such a head.
        """
        linear: dict[int, torch.Tensor] = {}
        for key, value in states.items():
            found = re.fullmatch(r"(?:.*\.)?(\d+)\.weight", key)
            if found and value.ndim == 2:
                linear[int(found[1])] = value
        chain = [linear[i] for i in sorted(linear)]
        fits = chain and all(a.shape[0] == b.shape[1] for a, b in pairwise(chain))
        if not fits or chain[-1].shape[0] != 1:
            shapes = ", ".join("x".join(map(str, w.shape)) for w in chain) or "none"
            raise UserError(
                f"{name}: is not a preference head: its linear layers have the shapes {shapes}; each must take the "
                "output of the one before, and the last must have 1 output. Check weights.preference.file."
            )
        head = cls(chain[0].shape[1], *(w.shape[0] for w in chain))
        bare = {".".join(key.split(".")[-2:]): value for key, value in states.items()}
        try:
            head.load_state_dict(bare)
        except RuntimeError as error:
            raise UserError(
                f"{name}: is not a preference head of Linear, BatchNorm, ReLU and Dropout ({in_one_line(error, 200)})."
            ) from None
        return head.eval().requires_grad_(False)
