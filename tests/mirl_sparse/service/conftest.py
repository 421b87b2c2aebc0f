"""A service with the shipped ticket, and one whose work ends when the test says so."""

import pytest
from services import LOOPBACK, HeldRestorer

from mirl_sparse.program import CompiledRestorer, find_program
from mirl_sparse.service import Limits, Service, make_app


@pytest.fixture
def restorer():
    return CompiledRestorer(find_program("small"), threads=1)


@pytest.fixture(scope="session")
def app():
    service = Service([CompiledRestorer(find_program("small"), threads=1)], Limits())
    return make_app(service, LOOPBACK)


@pytest.fixture
def held():
    """Return a function that makes a service with held work, its application and its restorer."""
    restorers = []

    def make(**limits):
        restorer = HeldRestorer()
        service = Service([restorer], Limits(**limits))
        restorer.is_held = True
        restorers.append(restorer)
        return service, make_app(service, LOOPBACK), restorer

    yield make
    for restorer in restorers:
        restorer.finish(1000)
