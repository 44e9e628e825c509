"""Mixers from a user's own file: what such a file defines, and how it is found.

A file that `exec.mixers` names holds one subclass of `OutsideMixer` for each mixer. The class says what the mixer is
called, what it costs and how its module is built; `model.outside` chooses it by name and version, which are what
enters a run's identity: where the file lies does not. Raise the version when a change moves loss curves.

This module is torch-free, and so may be the user's file but for the body of `build`: a plan then needs no torch.
"""

import hashlib
import importlib.util
import inspect
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError, ModelSpec, OutsideSpec

if TYPE_CHECKING:
    from hybrid.mixers.base import Mixer

T = TypeVar("T")
Setting = bool | int | float | str


class OutsideMixer(ABC):
    """What a user's file says of one mixer. All counts are exact whole numbers, for one layer.

    `name` and `version` identify it; `defaults` are its settings with their default values, whose types a
    configuration must keep. FLOPs count a multiply-add as two.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    defaults: ClassVar[Mapping[str, Setting]] = {}

    def check(self, settings: Mapping[str, Setting], d_model: int) -> None:  # noqa: B027 (nothing to check is common)
        """Raise ConfigError for settings that mean nothing."""

    @abstractmethod
    def params(self, settings: Mapping[str, Setting], d_model: int) -> int:
        """Every parameter of the module."""

    @abstractmethod
    def forward_flops(self, settings: Mapping[str, Setting], d_model: int, seq_len: int) -> int:
        """Forward FLOPs of one sequence, its matrix products and convolutions as executed (the full convention).

        The paper convention counts three times this for training: it has no formula for mixers of others.
        """

    @abstractmethod
    def state_bytes(self, settings: Mapping[str, Setting], d_model: int, seq_len: int, element_bytes: int) -> int:
        """Bytes that the module's state holds to decode one sequence up to `seq_len` tokens."""

    @abstractmethod
    def build(self, settings: Mapping[str, Setting], d_model: int) -> "Mixer[Any]":
        """The module, its parameters not yet set. Import torch here."""


_found: dict[tuple[str, int], OutsideMixer] = {}
_sources: dict[str, str] = {}


def load(paths: Sequence[str]) -> None:
    """Read the files' mixers, each file once in a process.

    Raises ConfigError for a file that is missing, fails, or defines no mixer, for a name and version that two files
    define, and for a file that has changed since this process read it: what was counted would not be what runs.
    """
    for path in paths:
        _load_file(Path(path).expanduser().resolve())


def source_hashes(model: ModelSpec) -> dict[str, str]:
    """The SHA-256 of the file that defines each outside mixer of a model, as it was read: provenance of its runs."""
    found: dict[str, str] = {}
    for block in model.blocks:
        if isinstance(block.mixer, OutsideSpec):
            mixer = find(block.mixer)
            found[f"{mixer.name} version {mixer.version}"] = _sources[inspect.getfile(type(mixer))]
    return found


def find(spec: OutsideSpec) -> OutsideMixer:
    """The definition of a spec's mixer. Raises ConfigError if no file that was read defines it."""
    mixer = _found.get((spec.name, spec.version))
    if mixer is not None:
        return mixer
    known = [f"{name} version {version}" for name, version in _found]
    where = f"model.outside = {spec.name} version {spec.version}"
    if not known:
        raise ConfigError(f"{where}: no file was read; expected exec.mixers=[your_file.py]")
    raise ConfigError(f"{where}: no file of exec.mixers defines it{did_you_mean(spec.name, known)}")


def params(spec: OutsideSpec, d_model: int) -> int:
    """Every parameter of the mixer, as its file counts them."""
    return _counted(spec, "params", lambda mixer, settings: mixer.params(settings, d_model))


def forward_flops(spec: OutsideSpec, d_model: int, seq_len: int) -> int:
    """Forward FLOPs of one sequence, as the mixer's file counts them."""
    return _counted(spec, "forward_flops", lambda mixer, settings: mixer.forward_flops(settings, d_model, seq_len))


def state_bytes(spec: OutsideSpec, d_model: int, seq_len: int, element_bytes: int) -> int:
    """Bytes of one sequence's state, as the mixer's file counts them."""
    return _counted(
        spec, "state_bytes", lambda mixer, settings: mixer.state_bytes(settings, d_model, seq_len, element_bytes)
    )


def build(spec: OutsideSpec, d_model: int) -> "Mixer[Any]":
    """The mixer's module, its parameters not yet set."""
    return find(spec).build(settings_of(spec), d_model)


def _counted(spec: OutsideSpec, what: str, count: Callable[[OutsideMixer, Mapping[str, Setting]], object]) -> int:
    """A count of a user's file: a whole number of at least 0, or a ConfigError that names the file."""
    mixer = find(spec)
    number = _asked(mixer, what, lambda: count(mixer, settings_of(spec)))
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ConfigError(f"{_where(mixer)}.{what} = {number!r}: expected a whole number of at least 0")
    return number


def _asked(mixer: OutsideMixer, what: str, ask: Callable[[], T]) -> T:
    """What a user's code answers; whatever it raises is its problem, said with its file."""
    try:
        return ask()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{_where(mixer)}.{what}: {type(error).__name__}: {error}") from error


def _where(mixer: OutsideMixer) -> str:
    return f"exec.mixers: {inspect.getfile(type(mixer))}: {type(mixer).__name__}"


def settings_of(spec: OutsideSpec) -> dict[str, Setting]:
    """The settings of a spec, by name."""
    return {setting.name: json.loads(setting.value) for setting in spec.settings}


def with_defaults(name: str, version: int, given: Mapping[str, object], d_model: int) -> dict[str, Setting]:
    """All settings of a mixer: those given and the defaults of the others. Raises ConfigError with every problem."""
    mixer = find(OutsideSpec(name=name, version=version, settings=()))
    problems = []
    for key, value in given.items():
        if key not in mixer.defaults:
            problems.append(f"model.outside.settings.{key}: unknown setting{did_you_mean(key, mixer.defaults)}")
        elif not _is_like(value, mixer.defaults[key]):
            problems.append(
                f"model.outside.settings.{key} = {value!r}: expected a value like its default, {mixer.defaults[key]!r}"
            )
    if problems:
        raise ConfigError(problems)
    settings = {**mixer.defaults, **{key: _like(value, mixer.defaults[key]) for key, value in given.items()}}
    _asked(mixer, "check", lambda: mixer.check(settings, d_model))
    return settings


def _is_like(value: object, default: Setting) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _like(value: Any, default: Setting) -> Setting:
    return float(value) if isinstance(default, float) else value


def _load_file(path: Path) -> None:
    where = f"exec.mixers: {path}"
    if not path.is_file():
        raise ConfigError(f"{where}: {'a directory' if path.is_dir() else 'no such file'}; expected a Python file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known_digest = _sources.get(str(path))
    if known_digest is not None:
        if known_digest != digest:
            raise ConfigError(f"{where}: changed since this process read it; start again")
        return
    module = _run(path, where)
    mixers = [
        value()
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, OutsideMixer)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
    ]
    if not mixers:
        raise ConfigError(f"{where}: defines no mixer; expected a subclass of hybrid.outside.OutsideMixer")
    problems = [problem for mixer in mixers for problem in _class_problems(mixer)]
    if problems:
        raise ConfigError(problems)
    for mixer in mixers:
        key = (mixer.name, mixer.version)
        known = _found.get(key)
        if known is not None and inspect.getfile(type(known)) != str(path):
            raise ConfigError(
                f"{where}: {mixer.name} version {mixer.version} is also defined by {inspect.getfile(type(known))}"
            )
        _found[key] = mixer
    _sources[str(path)] = digest


def _class_problems(mixer: OutsideMixer) -> list[str]:
    """What a class does not say of itself, or not as it should."""
    problems = []
    name, version = getattr(type(mixer), "name", None), getattr(type(mixer), "version", None)
    if not isinstance(name, str) or not name:
        problems.append(f"{_where(mixer)}.name = {name!r}: expected a text")
    if isinstance(version, bool) or not isinstance(version, int):
        problems.append(f"{_where(mixer)}.version = {version!r}: expected a whole number")
    defaults: dict[str, object] = dict(mixer.defaults)
    for key, default in defaults.items():
        if not isinstance(default, bool | int | float | str):
            problems.append(
                f"{_where(mixer)}.defaults[{key!r}] = {default!r}: expected a number, a text, true or false"
            )
    return problems


def _run(path: Path, where: str) -> ModuleType:
    name = f"hybrid_outside_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{where}: expected a Python file, ending in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file raises is its problem, said with its name
        del sys.modules[name]
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
    return module
