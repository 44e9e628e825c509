"""What tests of several packages share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybrid.config import Resolved, read_config
from sweeps.cells import Expansion, expand, reference_models
from sweeps.compose import Composer

FINGERPRINT = "0123456789abcdef"


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands remember of leases that they have watched is not kept beyond the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def resolve() -> Callable[..., Resolved]:
    """Compose with the shipped conf/ and read: `resolve("scale=1b", "model=llama")`."""

    def compose_and_read(*overrides: str) -> Resolved:
        with Composer() as composer:
            reference = reference_models(overrides, composer)
            return read_config(composer.compose(overrides), stdlib_fingerprint=lambda: FINGERPRINT, reference=reference)

    return compose_and_read


@pytest.fixture
def expand_request() -> Callable[..., Expansion]:
    """What a command line asks for: `expand_request("+sweep=demo", "sweep.seeds=2")`."""

    def run(*arguments: str) -> Expansion:
        with Composer() as composer:
            return expand(arguments, composer, stdlib_fingerprint=lambda: FINGERPRINT)

    return run


@pytest.fixture
def config() -> dict[str, Any]:
    """The default configuration, as a plain dict to change."""
    with Composer() as composer:
        return dict(composer.compose([]))


@pytest.fixture
def repo() -> Path:
    return Path(__file__).resolve().parent.parent
