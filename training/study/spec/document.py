"""The specification of a study, as a YAML file: options that all runs share, axes on which they differ, questions.

title: What does batch normalisation do?
base: {model: mlp, epochs: 12}            # any options of a training
axes:
  activation: [relu, tanh]                # an option and its values,
  network:                                # or a name and its levels, each with options of its own
    plain: {}
    normalised: {batch_norm: true}
seeds: 3
questions:                                # optional; by default, which level of each axis has the best score
  - ask: Does batch normalisation learn faster?
    measure: epochs_to_95
    axis: network
    compare: [normalised, plain]          # or `against: plain`, for all others; by default against the best
    where: {activation: relu}             # optional; by default, means over the other axes are compared
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from training.errors import ConfigError
from training.models import backbones
from training.options.config import TrainConfig
from training.options.config_file import option
from training.study.measures import MEASURES
from training.study.spec.grid import Options, Question, Range, Study, plain

OWN = {"out", "name", "resume", "cache", "seed", "promote", "floor", "margin"}
"""Options that a study sets itself."""
MOST_CHECKED = 2_000
KEYS = ("title", "base", "axes", "seeds", "questions")
QUESTION_KEYS = ("ask", "measure", "axis", "compare", "against", "where")


def read(path: Path) -> Study:
    """Read a study from a YAML file. Raises ConfigError that names the file, the line and the choices."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a YAML file that can be read ({error})") from error
    if root is None:
        raise ConfigError(f"{path}: expected a study ({', '.join(KEYS)}), got an empty file")
    parts = {name: node for name, _, node in _entries(path, root, KEYS)}
    if "axes" not in parts:
        raise ConfigError(f"{path}: expected axes, along which the runs differ")
    declared = _entries(path, parts["axes"])
    if not declared:
        raise ConfigError(f"{_at(path, parts['axes'])}: axes: expected one or more, along which the runs differ")
    ranges = {name: _range(path, name, key, node) for name, key, node in declared if _is_range(node)}
    axes = {name: _levels(path, name, key, node) for name, key, node in declared if name not in ranges}
    seeds = _value(parts["seeds"]) if "seeds" in parts else 3
    if not isinstance(seeds, int) or seeds < 1:
        raise ConfigError(f"{_at(path, parts['seeds'])}: seeds: expected a number of 1 or more, got {seeds!r}")
    questions = _elements(path, "questions", parts["questions"]) if "questions" in parts else []
    study = Study(
        title=str(_value(parts["title"])) if "title" in parts else path.stem,
        base=_options(path, parts["base"]) if "base" in parts else {},
        axes=axes,
        ranges=ranges,
        seeds=seeds,
        questions=tuple(_question(path, node, axes) for node in questions) or tuple(_default_questions(axes)),
    )
    check(study, str(path))
    return study


def check(study: Study, where: str) -> None:
    """Raise ConfigError that names the cell where options do not fit together, or what cannot be compared.

    Of more than MOST_CHECKED combinations, as those of a search, each level is tried beside the first of the others.
    """
    cells = study.some_cells(MOST_CHECKED)
    if twice := [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]:
        raise ConfigError(f"{where}: two levels give their runs one name, {twice[0]}: name them by other characters")
    if len(scores := sorted({cell.score for cell in cells})) > 1:
        raise ConfigError(
            f"{where}: best_by: expected the same for all runs, whose scores are compared, got {', '.join(scores)}"
        )
    for cell in cells:
        try:
            backbones.check(TrainConfig(**cell.options, seed=cell.seed))
        except ConfigError as error:
            raise ConfigError(f"{where}: {cell.name}: {error}") from error


def to_yaml(study: Study) -> str:
    """The study as YAML that `read` accepts."""
    axes: dict[str, object] = {
        axis: {level: plain(options) for level, options in levels.items()} for axis, levels in study.axes.items()
    }
    axes |= {name: asdict(limits) for name, limits in study.ranges.items()}
    questions = [
        {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(question).items() if value}
        for question in study.questions
    ]
    parts = {
        "title": study.title,
        "base": plain(study.base),
        "axes": axes,
        "seeds": study.seeds,
        "questions": questions,
    }
    return yaml.safe_dump(parts, sort_keys=False, allow_unicode=True, width=120)


def _levels(path: Path, axis: str, key: yaml.Node, node: yaml.Node) -> dict[str, Options]:
    """The levels of an axis: named sets of options, or the values of the option with the name of the axis."""
    if isinstance(node, yaml.MappingNode):
        levels = {name: _options(path, options) for name, _, options in _entries(path, node)}
    elif isinstance(node, yaml.SequenceNode):
        _refuse_unknown_option(path, axis, key)
        values = [option(axis, _value(value), _at(path, value)) for value in node.value]
        levels = {_name(value): {axis: value} for value in values}
    else:
        raise ConfigError(f"{_at(path, node)}: {axis}: expected a list of values, or levels with options")
    if not levels:
        raise ConfigError(f"{_at(path, node)}: {axis}: expected at least one level")
    return levels


def _is_range(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and {_value(key) for key, _ in node.value} >= {"low", "high"}


def _range(path: Path, name: str, key: yaml.Node, node: yaml.Node) -> Range:
    """The range that a search draws from: `{low: 0.001, high: 0.1, log: true}`."""
    _refuse_unknown_option(path, name, key)
    parts = {part: value for part, _, value in _entries(path, node, ("low", "high", "log"))}
    low, high = (option(name, _value(parts[end]), _at(path, parts[end])) for end in ("low", "high"))
    log = bool(_value(parts["log"])) if "log" in parts else False
    if any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in (low, high)):
        raise ConfigError(f"{_at(path, node)}: {name} is not a number, so it has no range; list its values")
    if not low < high or (log and low <= 0):
        bound = ", and above 0" if log else ""
        raise ConfigError(f"{_at(path, node)}: {name}: expected low below high{bound}, got {low} and {high}")
    return Range(low=low, high=high, log=log)


def _options(path: Path, node: yaml.Node) -> Options:
    options = {}
    for name, key, value in _entries(path, node):
        _refuse_unknown_option(path, name, key)
        options[name] = option(name, _value(value), _at(path, value))
    return options


def _refuse_unknown_option(path: Path, name: str, key: yaml.Node) -> None:
    if name in OWN:
        raise ConfigError(f"{_at(path, key)}: {name} is set by the study itself")
    if name not in TrainConfig.__dataclass_fields__:
        raise ConfigError(
            f"{_at(path, key)}: there is no option {name!r}; there are {', '.join(TrainConfig.__dataclass_fields__)}"
        )


def _question(path: Path, node: yaml.Node, axes: dict[str, dict[str, Options]]) -> Question:
    nodes = {name: value for name, _, value in _entries(path, node, QUESTION_KEYS)}
    missing = [name for name in ("ask", "measure", "axis") if name not in nodes]
    if missing:
        raise ConfigError(f"{_at(path, node)}: a question needs {', '.join(missing)}")

    def chosen(value: yaml.Node, choices: Sequence[str]) -> str:
        text = _name(_value(value))
        if text not in choices:
            raise ConfigError(f"{_at(path, value)}: expected one of {', '.join(choices)}, got {text!r}")
        return text

    axis = chosen(nodes["axis"], list(axes))
    levels = _elements(path, "compare", nodes["compare"]) if "compare" in nodes else []
    compared = [chosen(level, list(axes[axis])) for level in levels]
    if len(compared) not in (0, 2):
        raise ConfigError(f"{_at(path, nodes['compare'])}: compare: expected two levels, got {len(compared)}")
    where = {}
    for name, key, value in _entries(path, nodes["where"]) if "where" in nodes else ():
        where[chosen(key, [other for other in axes if other != axis])] = chosen(value, list(axes[name]))
    return Question(
        ask=str(_value(nodes["ask"])),
        measure=chosen(nodes["measure"], list(MEASURES)),
        axis=axis,
        compare=(compared[0], compared[1]) if compared else None,
        against=chosen(nodes["against"], list(axes[axis])) if "against" in nodes else None,
        where=where,
    )


def _default_questions(axes: dict[str, dict[str, Options]]) -> Iterator[Question]:
    for axis in axes:
        yield Question(ask=f"Which {axis} scores best?", measure="val_score", axis=axis, where={})


def _entries(path: Path, node: yaml.Node, known: Sequence[str] = ()) -> list[tuple[str, yaml.Node, yaml.Node]]:
    """Key, key node and value node of each entry of a mapping. Raises ConfigError for a key not in `known`, if any."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_at(path, node)}: expected `name: value` pairs")
    entries = [(_name(_value(key)), key, value) for key, value in node.value]
    for name, key, _ in entries:
        if known and name not in known:
            raise ConfigError(f"{_at(path, key)}: there is no {name!r}; there are {', '.join(known)}")
    return entries


def _elements(path: Path, name: str, node: yaml.Node) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise ConfigError(f"{_at(path, node)}: {name}: expected a list")
    return list(node.value)


def _value(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_document(node)


def _name(value: object) -> str:
    """The name of a level: the value as on the command line."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(_name, value))
    if value is None or isinstance(value, bool):
        return "none" if value is None else "yes" if value else "no"
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return str(value) if isinstance(value, float) and float(short) != value else short


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}, line {node.start_mark.line + 1}"
