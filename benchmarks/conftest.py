from pathlib import Path

import pytest
import results


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mirl-sparse")
    group.addoption("--quick", action="store_true", help="the few comparisons of make bench-quick")
    group.addoption("--results", type=Path, help="write JSON lines in this folder, anew")


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest):
    """What keeps a row of the results; all are written at the end, those of a wrong result too, which have no time."""
    path, rows = request.config.getoption("--results"), []
    yield rows.append
    if path:
        quick = request.config.getoption("--quick")
        results.write(results.path("quick" if quick else "full", path), rows)
