"""Generates the evaluation clips with the untouched model."""

from pathlib import Path

from music_ddpo import clips, execution
from music_ddpo.generator import Generator
from music_ddpo.params import Params
from music_ddpo.rewards.base import check_duration
from music_ddpo.rewards.registry import REWARDS
from music_ddpo.stage import MODELS, parallel_stage, study_seed


@parallel_stage
def baseline(params: Params) -> None:
    """Writes clips/baseline/."""
    chosen = execution.choose(params.compute)
    check_duration(list(REWARDS), MODELS, params.duration)
    generator = Generator.load(MODELS / "pipeline", chosen.device, chosen.dtype)
    clips.generate(generator, params, study_seed(), chosen, Path("clips/baseline"), "baseline clips")


if __name__ == "__main__":
    baseline()
