"""Hydra's composition as a function: overrides in, a plain dict out.

A composition by Hydra takes a tenth of a second, and a whole study has a hundred sets of group choices. So Hydra
composes all groups but the last two, `model` and `sweep`, once for each set of choices; the files of those two are then
merged into the plain dict in the same order, where they are as simple as ours are, and so are scalar settings. Both
ways give the same configuration (tested on every cell that comes with the project).
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

CONFIG_DIR = Path(__file__).resolve().parent.parent / "conf"
CONFIG_NAME = "config"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One override of the command line: a key with one value, or with several where it is to be swept over.

    `structural` ones choose groups, add or delete: Hydra composes them. The others set a value of what is there.
    """

    key: str
    values: tuple[Any, ...]
    swept: bool
    structural: bool
    text: str


class Composer:
    """Composes configurations; use as a context manager, as Hydra's state is global."""

    def __init__(self, config_dir: Path = CONFIG_DIR, config_name: str = CONFIG_NAME) -> None:
        self._config_dir = config_dir
        self._config_name = config_name
        self._session: AbstractContextManager[Any] = nullcontext()
        self._groups: dict[str, bool] = {}
        self._composed: dict[tuple[str, ...], tuple[dict[str, Any], bool]] = {}
        self._files: dict[Path, _ChoiceFile | None] = {}
        self._only_ours = False
        self._model: str | None = None

    def __enter__(self) -> "Composer":
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        # Inside `python run.py` Hydra is there already, with the user's own --config-dir.
        if not GlobalHydra.instance().is_initialized():
            self._session = initialize_config_dir(str(self._config_dir), version_base=None)
        self._session.__enter__()
        places = GlobalHydra.instance().config_loader().get_search_path().get_path()
        self._only_ours = [p.path for p in places if p.provider not in ("hydra", "schema")] == [str(self._config_dir)]
        return self

    def __exit__(self, *exception: Any) -> None:
        self._session.__exit__(*exception)

    def parse(self, arguments: Sequence[str]) -> list[Setting]:
        """Read overrides in Hydra's grammar. Raises ConfigError for what Hydra cannot read, all of it at once."""
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        settings, problems = [], []
        for argument in arguments:
            try:
                override = parser.parse_overrides([argument])[0]
                key = override.get_key_element()
                if not key.strip("+~"):
                    raise ConfigError("expected key=value")
                swept = override.is_sweep_override()
                if swept and not override.is_discrete_sweep():
                    raise ConfigError("an interval has no list of values; give the values, separated by commas")
                texts = [f"{key}={value}" for value in override.sweep_string_iterator()] if swept else [argument]
                values = tuple(parser.parse_override(text).value() for text in texts)
            except HydraException as error:
                problems.append(
                    f"{argument}: {explain(error)} (a value with spaces or brackets is quoted for the shell)"
                )
                continue
            except ConfigError as error:
                problems += [f"{argument}: {problem}" for problem in error.problems]
                continue
            is_group = self.is_group(key)
            if is_group and any(value is None or not isinstance(value, str | list) for value in values):
                problems.append(
                    f"{argument}: expected one of the choices of {key}{did_you_mean('', self._choices(key))}"
                )
                continue
            structural = key[0] in "+~" or override.package is not None or is_group
            settings.append(Setting(key=key, values=values, swept=swept, structural=structural, text=argument))
        if problems:
            raise ConfigError(problems)
        return settings

    def is_group(self, key: str) -> bool:
        """Whether the key names a directory of choices, such as `model`."""
        if key not in self._groups:
            self._groups[key] = bool(self._choices(key))
        return self._groups[key]

    def _choices(self, group: str) -> list[str]:
        from hydra.core.global_hydra import GlobalHydra

        return list(GlobalHydra.instance().config_loader().get_group_options(group))

    def compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """What Hydra composes, as a plain dict, not to be changed. Raises ConfigError with Hydra's reason."""
        return self._compose(tuple(overrides))[0]

    def merge(self, overrides: Sequence[str], values: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """What Hydra would compose from the structural overrides and then these values, in order.

        A configuration that refers to itself (`${...}`) is composed by Hydra, value by value: merging after the
        fact would miss what depends on them. Raises ConfigError for a key that is not there.
        """
        config, refers_to_itself = self._compose(tuple(overrides))
        if values and (refers_to_itself or any("${" in str(value) for _, value in values)):
            return self.compose([*overrides, *(as_override(key, value) for key, value in values)])
        problems: list[str] = []
        for key, value in values:
            config = _with(config, key.split("."), value, key, problems)
        if problems:
            raise ConfigError(problems)
        return config

    def _compose(self, overrides: tuple[str, ...]) -> tuple[dict[str, Any], bool]:
        """The configuration, and whether it refers to itself."""
        if overrides not in self._composed:
            merged = self._merged_files(overrides)
            self._composed[overrides] = self._by_hydra(overrides) if merged is None else (merged, False)
        return self._composed[overrides]

    def launcher(self, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """Which launcher these overrides of Hydra's own settings choose, and its settings. Raises ConfigError."""
        from hydra import compose
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            hydra = compose(self._config_name, overrides=list(overrides), return_hydra_config=True).hydra
            settings = OmegaConf.to_container(hydra.launcher, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            keys = {text: text.lstrip("+~").partition("=")[0] for text in overrides}
            own = {text: key.split(".")[2] for text, key in keys.items() if key.startswith(_OF_LAUNCHER)}
            if not own:
                raise ConfigError(explain(error)) from error
            valid = self.launcher([text for text in overrides if text not in own])[1]
            wrong = [f"{text}: unknown setting{did_you_mean(name, valid)}" for text, name in own.items()]
            wrong = [line for line, name in zip(wrong, own.values(), strict=True) if name not in valid]
            raise ConfigError(wrong or explain(error)) from error
        assert isinstance(settings, dict)
        choice = str(hydra.runtime.choices["hydra/launcher"])
        return choice, {str(key): value for key, value in settings.items() if key != "_target_"}

    def compose_by_hydra(self, overrides: Sequence[str]) -> dict[str, Any]:
        """What Hydra composes, every file of it read by Hydra: what `compose` gives too, but sooner."""
        return self._by_hydra(tuple(overrides))[0]

    def _by_hydra(self, overrides: tuple[str, ...]) -> tuple[dict[str, Any], bool]:
        from hydra import compose
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        try:
            config = compose(self._config_name, overrides=list(overrides))
            raw = OmegaConf.to_container(config, resolve=False)
            plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(explain(error)) from error
        return plain, raw != plain

    def _merged_files(self, overrides: tuple[str, ...]) -> dict[str, Any] | None:
        """The configuration with a model's and a sweep's file merged in here; None where that is for Hydra to do."""
        choices: dict[str, str] = {}
        for override in overrides:
            found = _PLAIN_CHOICE.fullmatch(override)
            if not found or (found["plus"] == "+") != (found["group"] == "sweep") or not self.is_group(found["group"]):
                return None
            choices[found["group"]] = found["choice"]
        sweep = self._file("sweep", choices.pop("sweep", None))
        if sweep is None or not self._only_ours or (sweep.body and not sweep.is_global):
            return None
        chosen = {**sweep.overrides, **choices}
        name = chosen.pop("model", None) or self._default_model()
        model, scale = self._file("model", name), self._file("scale", chosen.get("scale"))
        if name is None or model is None or scale is None or model.is_global or model.overrides:
            return None
        if scale.overrides.keys() & sweep.overrides.keys():
            return None  # which of the two wins is for Hydra to say
        base, refers_to_itself = self._compose((*(f"{group}={choice}" for group, choice in chosen.items()), "~model"))
        if refers_to_itself:
            return None
        config = {**base, "model": _merged(base["model"], model.body)}
        return cast(dict[str, Any], _merged(config, {key: v for key, v in sweep.body.items() if key != "hydra"}))

    def _default_model(self) -> str | None:
        """The model that the primary file's defaults choose; None where it has none."""
        if self._model is None:
            from omegaconf import OmegaConf

            primary = cast(Any, OmegaConf.load(self._config_dir / f"{self._config_name}.yaml"))
            models = (entry["model"] for entry in primary.get("defaults", []) if "model" in entry)
            self._model = next(models, None)
        return self._model

    def _file(self, group: str, choice: str | None) -> "_ChoiceFile | None":
        """What a choice's file says, nothing for no choice; None where it says more than values and overrides."""
        if choice is None:
            return _ChoiceFile(body={}, overrides={}, is_global=False)
        path = self._config_dir / group / f"{choice}.yaml"
        if path not in self._files:
            self._files[path] = _read_choice(path)
        return self._files[path]


@dataclass(frozen=True, kw_only=True)
class _ChoiceFile:
    """A file of conf/: its values, the choices of other groups that its defaults override, and whether its values
    are those of the whole configuration (`@package _global_`) and not of its group."""

    body: dict[str, Any]
    overrides: dict[str, str]
    is_global: bool


_PLAIN_CHOICE = re.compile(r"(?P<plus>\+?)(?P<group>[a-z_]+)=(?P<quote>'?)(?P<choice>[A-Za-z0-9_]+)(?P=quote)")


def _read_choice(path: Path) -> _ChoiceFile | None:
    """None for what only Hydra should read: other packages, other defaults, interpolations, no file or no YAML."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
        body = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException):
        return None
    is_global = text.startswith("# @package _global_\n")
    if not isinstance(body, dict) or "${" in text or ("@package" in text and not is_global):
        return None
    overrides = {}
    for entry in body.pop("defaults", []):
        key, value = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else ("", None)
        found = re.fullmatch(r"override /([a-z_]+)", str(key))
        if not found or not isinstance(value, str):
            return None
        overrides[found[1]] = value
    return _ChoiceFile(body=cast(dict[str, Any], body), overrides=overrides, is_global=is_global)


def _merged(under: Any, over: Any) -> Any:
    """`over` merged into `under` as Hydra merges files: dicts into dicts, everything else replaces what was there."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return {**under, **{key: _merged(under[key], value) if key in under else value for key, value in over.items()}}


_OF_LAUNCHER = "hydra.launcher."
_NEVER_NULL = ("plan", "store", "generate", "notify", "eval")


def _with(config: Any, path: list[str], value: Any, key: str, problems: list[str]) -> Any:
    """The config with one value set, sharing every part that does not change; a dict is merged into a dict."""
    if not path:
        if isinstance(config, dict) and isinstance(value, dict):
            for name, inner in value.items():
                config = {**config, name: _with(config[name], [], inner, key, problems) if name in config else inner}
            return config
        if isinstance(config, dict) and config and (value is not None or key in _NEVER_NULL):
            problems.append(f"{key} = {value!r}: expected settings: {', '.join(map(str, config))}")
            return config
        return value
    name, *rest = path
    if not isinstance(config, dict) or name not in config:
        valid = list(config) if isinstance(config, dict) else []
        ending = did_you_mean(name, map(str, valid)) if valid else ""
        problems.append(f"{key} = {value!r}: unknown setting: there is no {name!r} here{ending}")
        return config
    return {**config, name: _with(config[name], rest, value, key, problems)}


def as_override(key: str, value: Any) -> str:
    """A setting as an argument of `python run.py`, quoted for Hydra's grammar (not for the shell)."""
    return f"{key}={_hydra_text(value)}"


def _hydra_text(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list() | tuple():
            return "[" + ",".join(map(_hydra_text, value)) + "]"
        case dict():
            return "{" + ",".join(f"{name}:{_hydra_text(inner)}" for name, inner in value.items()) + "}"
        case _:
            text = str(value)
            plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*|[0-9]+:[0-9]+", text) and text.lower() not in _KEYWORDS
            return text if plain else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_KEYWORDS = ("null", "true", "false", "nan", "inf")


def diagnose(arguments: Sequence[str], composer: Composer) -> None:
    """Raises ConfigError with everything in these overrides that cannot be composed, in our words; or nothing."""
    composer.launcher([text for text in arguments if text.lstrip("+~").startswith((_OF_LAUNCHER, "hydra/launcher="))])
    settings = composer.parse(arguments)
    structural = [s.text for s in settings if s.structural and not s.swept]
    composer.merge(structural, [(s.key, s.values[0]) for s in settings if not s.structural])


_NO_SUCH_CHOICE = re.compile(
    r"Could not find '(?P<group>.+)/(?P<choice>[^/]+)' Available options in '.+?': (?P<valid>.*)"
)


def explain(error: BaseException) -> str:
    """What Hydra, OmegaConf or the YAML reader complains of, on one line, its causes included."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split()).partition(" Config search path:")[0]
        unknown = _NO_SUCH_CHOICE.search(text)
        if unknown:
            group, choice = unknown["group"], unknown["choice"]
            return f"{group}={choice}: no such choice{did_you_mean(choice, unknown['valid'].split())}"
        if text and text not in " ".join(lines):
            lines.append(text)
        cause = cause.__cause__
    return "; ".join(lines)
