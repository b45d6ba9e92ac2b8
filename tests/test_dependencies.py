"""What a stage's result depends on, dvc.yaml declares: followed through the imports of each stage."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from helpers.project import PROJECT, run
from music_ddpo.core.params import known_rewards
from music_ddpo.rewards.fetching import code_of

SRC = PROJECT / "src" / "music_ddpo"
PARAMS = yaml.safe_load((PROJECT / "params.yaml").read_text())
STAGES = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]


def imports(path: Path) -> set[Path]:
    """The files of the project that a file imports, anywhere in it; with a module its packages."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts == ["beside"]:
                found.add(PROJECT / "stages" / "beside.py")
            for i in range(1, len(parts) + 1):
                place = SRC.parent / Path(*parts[:i])
                found |= {p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()}
    return found


def closure(path: Path) -> set[Path]:
    """A file and all that it imports, directly or not."""
    done, todo = set(), {path}
    while todo:
        done |= todo
        todo = set().union(*map(imports, todo)) - done
    return done


def only_a_docstring(path: Path) -> bool:
    body = ast.parse(path.read_text()).body
    return len(body) <= 1 and all(isinstance(node, ast.Expr) for node in body)


@pytest.mark.parametrize("name", STAGES)
def test_every_module_that_can_change_a_stages_result_is_among_its_dependencies(name):
    stage = STAGES[name].get("do", STAGES[name])
    script = stage["cmd"].split()[1]
    declared = [PROJECT / dep for dep in stage["deps"]]
    # The manifest of a reward in models/rewards has the checksums of the reward's code (see the test below).
    rewards = any(dep.startswith("models/rewards") for dep in stage["deps"])
    missing = [
        path.relative_to(PROJECT).as_posix()
        for path in sorted(closure(PROJECT / script))
        if not any(path == dep or dep in path.parents for dep in declared)
        and SRC / "machine" not in path.parents
        and not only_a_docstring(path)
        and not (rewards and SRC / "rewards" in path.parents)
    ]
    assert missing == []


@pytest.mark.parametrize("name", known_rewards())
def test_the_manifest_of_a_reward_covers_its_imports(name):
    own = SRC / "rewards" / name
    start = own / "__init__.py" if own.is_dir() else own.with_suffix(".py")
    imported = {p.relative_to(SRC / "rewards").as_posix() for p in closure(start) if SRC / "rewards" in p.parents}
    assert imported <= set(code_of(name))


def test_every_tracked_metric_and_plot_is_the_output_of_a_stage():
    outputs = {"plots/overoptimisation.svg"}  # of benchmarks/overoptimisation.py, which takes longer than the study
    for stage in STAGES.values():
        for kind in ("outs", "metrics", "plots"):
            for out in stage.get("do", stage).get(kind, []):
                path = out if isinstance(out, str) else next(iter(out))
                outputs |= {path.replace("${item}", reward) for reward in PARAMS["rewards"]}
    tracked = run(PROJECT, "git", "ls-files", "metrics", "plots").stdout.split()
    assert [p for p in tracked if not any(p == out or p.startswith(f"{out}/") for out in outputs)] == []


def test_no_stage_depends_on_how_it_is_executed():
    for name, stage in STAGES.items():
        assert not [dep for dep in stage.get("do", stage)["deps"] if "machine" in dep], name


LAYERS = ["core", "machine", "model", "weights", "rewards", "training", "measuring", "doctor"]


def test_a_file_imports_only_from_its_own_layer_and_earlier_ones():
    for i, layer in enumerate(LAYERS):
        for path in (SRC / layer).rglob("*.py"):
            used = {p.relative_to(SRC).parts[0] for p in imports(path) if SRC in p.parents}
            assert not used & set(LAYERS[i + 1 :]), path
