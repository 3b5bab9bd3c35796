"""The configuration as a YAML file: its settings read, to lay flags over, and written with the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alibi_attention.lab.config import JOINED, ExperimentConfig, nearest_setting
from alibi_attention.lab.errors import LabError
from alibi_attention.lab.files import write_text

_HEAD = "# Every setting of this run: `alibi extrapolate --config THIS_FILE --output NEW_FOLDER` repeats it.\n"

_PATHS = ("text", "held_out_text")

_UNNAMED = ' in "<unicode string>",'


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a name that comes twice, of which YAML's own takes the last."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    names: list[Any] = []
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            # What is merged may come again: that is what it is for.
            continue
        name = loader.construct_object(key)
        if name in names:
            raise yaml.constructor.ConstructorError(None, None, f"{name} comes twice", key.start_mark)
        names.append(name)
    found: dict[Any, Any] = loader.construct_mapping(node)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class FileSettings(dict[str, Any]):
    """Settings by name, as a file has them.

    Attributes:
        places: by the same names, the key as it is written there and the file: what an error about one is to name.
    """

    def __init__(self, values: Mapping[str, Any], places: Mapping[str, str]) -> None:
        super().__init__(values)
        self.places = dict(places)


def read_settings(path: Path) -> FileSettings:
    """The settings in a file, before any validation of their values.

    Paths are relative to the file. A data set is a path where there is such a file or folder, and else a name.

    Raises:
        LabError: if the file cannot be read, is no mapping, or holds a setting there is not.
    """
    remedy = "write one setting a line, such as `length: 256`"
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        got = f"{path} ({error.strerror})"
        raise LabError("config", expected="a file that can be read", got=got, remedy="check its name") from None
    except UnicodeDecodeError:
        got = f"{path}, which is binary or in another encoding"
        raise LabError("config", expected="UTF-8 text", got=got, remedy="name a YAML file, or save it as UTF-8"
                       ) from None  # fmt: skip
    except yaml.YAMLError as error:
        # The parser was given text, and knows no name of it.
        got = f"{path} ({' '.join(str(error).split()).replace(_UNNAMED, ',')})"
        raise LabError("config", expected="a YAML file", got=got, remedy=remedy) from None
    if not isinstance(values, dict):
        kind = {type(None): "nothing", list: "a list", str: "text"}.get(type(values), "a single value")
        got = f"{path}, which holds {kind}"
        raise LabError("config", expected="settings by name", got=got, remedy=remedy)
    seen: dict[str, Any] = {}
    for name in values:
        setting = str(name).replace("-", "_")
        if setting in seen:
            got = f"{seen[setting]} and {name} in {path}"
            raise LabError("config", expected="each setting once", got=got, remedy="leave one of them out")
        seen[setting] = name
        if setting not in ExperimentConfig.model_fields:
            near = nearest_setting(setting)
            remedy = f"{near} is meant?" if near else "`alibi extrapolate --help` has them as flags"
            raise LabError("config", expected="known settings", got=f"{name} in {path}", remedy=remedy)
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    for name in (*JOINED, *_PATHS):
        if name in values and not isinstance(values[name], list):
            # Names and numbers may be joined by commas, which a path may have in it.
            whole = isinstance(values[name], str) and name in JOINED
            values[name] = [] if values[name] is None else values[name] if whole else [values[name]]
    for name in _PATHS:
        if name in values:
            wrong = [each for each in values[name] if not isinstance(each, str)]
            if wrong:
                remedy = "put a name that YAML takes for something else into quotes"
                got = f"{wrong[0]!r} for {seen[name]} in {path}"
                raise LabError("config", expected="names of files and folders", got=got, remedy=remedy)
            values[name] = [str((path.parent / text).resolve()) for text in values[name]]
    if isinstance(values.get("dataset"), str):
        values["dataset"] = _path_or_name(values["dataset"], path.parent)
    return FileSettings(values, {name: f"{key} in {path}" for name, key in seen.items()})


def _path_or_name(dataset: str, folder: Path) -> str:
    """The whole path of a data set beside the file, or where one is working; a run must find it from anywhere."""
    there = [found for found in (folder / dataset, Path(dataset)) if dataset and found.exists()]
    return str(there[0].resolve()) if there else dataset


def write_config_file(path: Path, config: ExperimentConfig) -> None:
    """Every setting, defaults included, in the order of their description."""
    values = config.model_dump(mode="json")
    write_text(path, _HEAD + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None))
