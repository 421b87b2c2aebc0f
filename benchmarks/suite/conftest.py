"""Define the options of the suite, and where it writes its results."""

from pathlib import Path

import pytest

from benchmarks.suite import results


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mirl-sparse")
    group.addoption("--quick", action="store_true", help="the few comparisons of make bench-quick")
    group.addoption(
        "--results",
        type=Path,
        help="write JSON lines in this folder: anew, or with -k, in place of the rows measured again",
    )


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest) -> results.ResultStore:
    folder = request.config.getoption("--results")
    path = folder and results.path("quick" if request.config.getoption("--quick") else "full", folder)
    again = path and path.exists() and request.config.getoption("-k")
    return results.ResultStore(path, results.read(path) if again else [])
