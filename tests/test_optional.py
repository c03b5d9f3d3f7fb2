"""Where optional packages are required, a test that misses one fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests import conftest


@pytest.mark.parametrize(
    ("required", "optional", "outcome"),
    [
        ("1", ("nonesuch", "json"), "failed"),
        ("1", ("json",), "skipped"),  # skipped for another reason, such as no GPU
        ("", ("nonesuch",), "skipped"),
    ],
)
def test_a_skip_fails_where_an_optional_package_is_required(
    required, optional, outcome, monkeypatch
):
    monkeypatch.setenv("MINIVLLM_REQUIRE_OPTIONAL", required)
    monkeypatch.setattr(conftest, "OPTIONAL", optional)
    monkeypatch.setattr("sys.platform", "linux")
    report = SimpleNamespace(outcome="skipped", longrepr="no such module")
    conftest.fail_if_optional_was_missing(report)
    assert report.outcome == outcome
    if outcome == "failed":
        assert "missing: nonesuch (pip install -r .ci/requirements.txt)" in report.longrepr


def test_the_list_is_what_ci_installs():
    text = (conftest.ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8")
    for name in conftest.OPTIONAL:
        assert f"\n{name.replace('_', '-')}" in text
