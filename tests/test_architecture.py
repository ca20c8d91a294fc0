"""The dependencies between packages and modules must be those that CONTRIBUTING.md states."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import networkx
import pytest

from tests.overloaded_words import PACKAGES, ROOT, count_words

# In commit e1982c3, before modules and identifiers were renamed.
OVERLOADED_BEFORE = 2_086


def _lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("storage/errors.py", "import cluster.runtime.devices", "Packages"),
        ("alignment/statistics/vectors.py", "import pyarrow", "alignment"),
        ("cluster/models/shard.py", "import ray", "Shards"),
        ("jobs/planner.py", "import jobs.sweep", "Inside jobs"),
        ("jobs/engine/stage.py", "import jobs.planner", "Inside jobs"),
    ],
)
def test_a_planted_import_against_the_layers_is_rejected(
    tmp_path: Path, module: str, line: str, contract: str
) -> None:
    """A contract that rejects nothing would look like one that holds."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    result = _lint_imports(tmp_path)
    assert result.returncode == 1
    (broken,) = [row for row in result.stdout.splitlines() if " BROKEN" in row]
    assert broken.startswith(contract)


def test_no_modules_import_each_other() -> None:
    """Cycles make the order of imports matter and hide which module depends on which."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    imports = networkx.DiGraph()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            # a stage run as a script, `python -m jobs.<stage>`, is the command line
            if imported != "jobs.commands.main":
                imports.add_edge(module, imported)
    cycles = [sorted(part) for part in networkx.strongly_connected_components(imports) if len(part) > 1]
    assert cycles == []


def test_identifiers_name_what_they_hold() -> None:
    """One word for a path, a site, a row, a placement and a rank misleads whoever reads it."""
    by_word, _ = count_words()
    assert by_word.total() <= OVERLOADED_BEFORE / 10, by_word
