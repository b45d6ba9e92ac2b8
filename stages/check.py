"""Checks params.yaml. All stages follow this one, so DVC removes no earlier result because of a wrong value."""

import warnings

import beside  # noqa: F401
from music_ddpo.core.files import write_text
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import stage
from music_ddpo.weights.shipped import read_reference
from music_ddpo.weights.sources import SHIPPED


@stage
def check(params: Params) -> None:
    """Writes metrics/params.txt, always the same text: no stage is run again for it."""
    if params.model in SHIPPED:
        recorded = {name for scores in read_reference(SHIPPED[params.model]).values() for name in scores}
        for name in sorted(set(params.prompts.instruments) - recorded):
            warnings.warn(
                f"prompts.instruments: {params.model} was never trained on {name!r}, so its clips will not sound like "
                f"it; {params.model} knows {', '.join(sorted(recorded))}.",
                stacklevel=1,
            )
    write_text("metrics/params.txt", "params.yaml was valid when `check` last ran.\n")


if __name__ == "__main__":
    check()
