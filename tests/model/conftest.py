"""Fixtures of the tests of models."""

import pytest

from recbole_sigma.model import chunks


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small batches of tests are encoded in several chunks, as large ones are."""
    monkeypatch.setattr(chunks, "SPARE", 0)
