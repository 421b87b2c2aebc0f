from pathlib import Path

import pytest
import results


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mirl-sparse")
    group.addoption("--quick", action="store_true", help="the few comparisons of make bench-quick")
    group.addoption("--results", type=Path, help="write JSON lines in this folder, anew")


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest):
    """What keeps a row of the results, those of a wrong result too, which have no time; a crash later loses none."""
    folder, rows = request.config.getoption("--results"), []
    path = folder and results.path("quick" if request.config.getoption("--quick") else "full", folder)

    def keep(row: results.Row) -> None:
        rows.append(row)
        if path:
            results.write(path, rows)

    return keep
