from pathlib import Path

import pytest
import results


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mirl-sparse")
    group.addoption("--quick", action="store_true", help="the few comparisons of make bench-quick")
    group.addoption(
        "--results",
        type=Path,
        help="write JSON lines in this folder: anew, or with -k, in place of the rows measured again",
    )


class Kept:
    """The rows of the results, those of wrong results too, which have no time; each is written at once, so that a crash loses none."""

    def __init__(self, path: Path | None, rows: list[results.Row]) -> None:
        self._path, self.rows = path, rows
        self._old = {results.subject(row) for row in rows}  # measured by an earlier run

    def __call__(self, row: results.Row) -> None:
        subject = results.subject(row)
        if subject in self._old:
            self._old.remove(subject)
            self.rows = [r for r in self.rows if results.subject(r) != subject]
        self.rows.append(row)
        if self._path:
            results.write(self._path, self.rows)


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest) -> Kept:
    folder = request.config.getoption("--results")
    path = folder and results.path("quick" if request.config.getoption("--quick") else "full", folder)
    again = path and path.exists() and request.config.getoption("-k")
    return Kept(path, results.read(path) if again else [])
