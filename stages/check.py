"""Checks params.yaml. All stages follow this one, so DVC removes no earlier result because of a wrong value."""

import warnings

import beside  # noqa: F401
from music_ddpo.core.files import write_text
from music_ddpo.core.params import Params
from music_ddpo.core.prompts import EMOTIONS_OF_QUADRANT
from music_ddpo.machine.stage import stage
from music_ddpo.weights.shipped import read_reference
from music_ddpo.weights.sources import SHIPPED


@stage
def check(params: Params) -> None:
    """Writes metrics/params.txt, always the same text: no stage is run again for it."""
    if params.model in SHIPPED:
        references = read_reference(SHIPPED[params.model]).values()
        known = {
            "instruments": {name for scores in references for name in scores},
            "emotions": {word for words in EMOTIONS_OF_QUADRANT.values() for word in words},
        }
        for key, words in known.items():
            for word in sorted(set(getattr(params.prompts, key)) - words):
                warnings.warn(
                    f"prompts.{key}: {params.model} was never trained on {word!r}, so its clips will not sound like "
                    f"it; {params.model} knows {', '.join(sorted(words))}.",
                    stacklevel=1,
                )
    if params.few_trajectories:
        warnings.warn(f"{params.few_trajectories}: now some clips are compared with other prompts' only.", stacklevel=1)
    write_text("metrics/params.txt", "params.yaml was valid when `check` last ran.\n")


if __name__ == "__main__":
    check()
