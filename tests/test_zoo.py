"""Every method on every transformer of diffusers. zoo/matrix.py has the promises, docs/support-matrix.md the results."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

pytest.importorskip("diffusers")

from zoo import NOT_DENOISERS, ZOO
from zoo.table import known_row, outcomes, row


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_promises(entry):
    found = outcomes(entry)
    assert not {method: outcome.failures for method, outcome in found.items() if outcome.failures}
    assert row(entry, found) == known_row(entry.name), "docs/support-matrix.md is old: run python tests/zoo/table.py"


def test_no_transformer_is_forgotten():
    """Every model class in diffusers.models.transformers that has a list of blocks."""
    package = importlib.import_module("diffusers.models.transformers")
    classes = set()
    for module in pkgutil.iter_modules(package.__path__):
        for name, kind in vars(importlib.import_module(f"{package.__name__}.{module.name}")).items():
            is_own = inspect.isclass(kind) and kind.__module__.endswith(f".{module.name}")
            if is_own and hasattr(kind, "from_pretrained") and "ModuleList(" in inspect.getsource(kind):
                classes.add(name)
    known = {entry.name.partition("/")[0] for entry in ZOO} | set(NOT_DENOISERS)
    assert classes - known == set()
    assert len({entry.name.partition("/")[0] for entry in ZOO}) >= 50
