"""`python -m training folds`: answers to every image by a model that has not seen it, from `folds` down."""

import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

import numpy as np
import yaml
from tqdm import tqdm

from serving.contract.objects import Url
from training.data import left_out, splits
from training.data.dataset import load_dataset, load_images
from training.data.inspection.image_set import ImageSet
from training.data.sources.source import Source, refuse
from training.engine import runs
from training.engine.runs import CONFIG, FORGOTTEN
from training.errors import ConfigError, FoldFailed
from training.folds.config import FITTED, FoldsConfig
from training.folds.gaps import OPTIONS, differing_options, find_ordinary, left_out_facts
from training.folds.parts import FOLDS, in_file_name, parted, parts
from training.folds.report import write_folds_report
from training.folds.results import OutOfFold, check_images, collect_answers
from training.models import backbones
from training.options.choices import Leaks
from training.options.config import TrainConfig
from training.process_pool import ProcessPool, TrainingJob, pool_size
from training.storage import write_atomically
from training.study.results import log, outcome
from training.validation import check_options, check_source

PLACES = ("out", "cache")
"""Options that are not kept: `forget --retrain` makes folds again by the others, in places of its own."""


def folds(config: FoldsConfig) -> Path:
    """Make the trainings that are missing, write the report, and return the folder with both.

    Raises ConfigError, DataError, OSError, Interrupted, and FoldFailed for a training that fails.
    """
    folder = config.out / "folds" / _folder_name(config)
    config = replace(config, cache=config.cache or config.out / ".cache")
    # Read before any training: what is wrong with the data, or makes no folds of it, costs no time.
    checked = backbones.check(config.training)
    final = final_run(folder, config)
    config.out.mkdir(parents=True, exist_ok=True)
    if config.final:
        check_final(final, folder)
    check_options(checked if config.final else replace(checked, promote="never"))
    images = load_images(checked, partial(check_columns, config))
    fold_parts = parts(config, images)
    if finding := parted(config, images):
        print(f"warning: {finding}")
    dataset = load_dataset(replace(checked, fold=fold_parts[0].fold))
    prepare_folds(folder, config)
    by_run = {folder / "runs" / part.name: part for part in fold_parts}
    check_unmarked(folder, list(by_run))
    missing = [run for run in by_run if outcome(run) != "done"]
    check_images([run for run in by_run if run not in missing], images)
    if config.leave_out is not None:
        print(f"parts  each value of {config.leave_out} is left out once: {_sizes(images, config.leave_out)}")
    print(f"folds  {folder}: {len(by_run)} trainings, {len(missing)} to make, each as long as an ordinary one")
    if config.final:
        print(f"final  {final}: one training more, on all images")
    train_all({run: job(run, by_run[run].fold, config) for run in missing}, config)
    answers = collect_answers(list(by_run), dataset)
    check_complete(answers, images, config.leaks)
    by_value = None
    if config.leave_out is not None:
        ordinary = find_ordinary(folder.with_name(_name(config)), _options(config), dataset, answers)
        by_value = left_out_facts(dataset, answers, fold_parts, ordinary)
    write_folds_report(folder, dataset, answers, by_value)
    if config.final and outcome(final) != "done":
        train_all({final: final_job(final, folder, config)}, config)
    return folder


def check_columns(config: FoldsConfig, source: Source) -> None:
    """Refuse classes and columns that the data does not have, before its images are read. Raises ConfigError."""
    check_source(config, source)
    if config.leave_out is not None:
        left_out.column_of(source, config.leave_out)


def final_run(folder: Path, config: FoldsConfig) -> Path:
    """The run of the final model, beside all others that may be served."""
    return config.out / f"{folder.name}-final"


def _sizes(images: ImageSet, column: str) -> str:
    counts = Counter(left_out.values(images, column))
    return ", ".join(f"{value} ({count:,} images)" for value, count in sorted(counts.items()))


def check_unmarked(folder: Path, run_folders: Sequence[Path]) -> None:
    """Raise ConfigError where `forget` has marked a run."""
    if marked := [run for run in run_folders if (run / FORGOTTEN).exists()]:
        raise ConfigError(
            f"{folder}: the weights of {len(marked)} of its runs depend on images that were forgotten; another --name "
            "begins anew"
        )


def check_final(run: Path, folder: Path) -> None:
    """Raise ConfigError where the name of the final model is that of another run, or of a folder with other files.

    Also where `latest` could not point to it.
    """
    runs.refuse_latest(run)
    if not (run / CONFIG).exists():
        runs.refuse_taken(run)
        return
    origin = runs.load_config(run).from_folds
    if origin is None or origin.resolve() != folder.resolve():
        kind = "an ordinary run" if origin is None else f"that of the folds in {origin}"
        raise ConfigError(f"{run}: the final model has this name, and it is {kind}. --name gives another one")


def check_complete(answers: OutOfFold, images: ImageSet, leaks: Leaks) -> None:
    """Raise DataError where images are in no fold, other than those that show one picture under two labels."""
    expected = np.ones(len(images.keys), bool) if leaks != "drop" else ~splits.contradictions(images)
    expected[answers.indices] = False
    unanswered = [key for key, is_left in zip(images.keys, expected, strict=True) if is_left]
    refuse(images.name, "images that no fold answers, as they came later; --name begins anew", unanswered)


def _folder_name(config: FoldsConfig) -> str:
    by = "" if config.leave_out is None else f"-by-{in_file_name(left_out.name_of(config.leave_out))}"
    return _name(config) + by


def _name(config: FoldsConfig) -> str:
    data = config.data
    if config.name is not None:
        return config.name
    if data is None:
        return "digits"
    return data.name.partition(".")[0] if isinstance(data, Url) else data.resolve().stem


def prepare_folds(folder: Path, config: FoldsConfig) -> None:
    """Create the folder and write the options into it. Raises ConfigError for a folder with folds of other options."""
    options = folder / OPTIONS
    now = _options(config)
    if options.exists():
        before = yaml.safe_load(options.read_text(encoding="utf-8"))
        if differing := differing_options(before, now):
            changes = "; ".join(f"{name} was {before.get(name)}, now it is {now.get(name)}" for name in differing)
            command = f"`train --from-folds {quote(str(folder))}`"
            final = f", and {command} makes a final model by them" if {*differing} <= FITTED else ""
            raise ConfigError(f"{folder}: holds folds of other options: {changes}. --name puts these elsewhere{final}")
    for part in ("logs", "runs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_atomically(options, lambda file: file.write(yaml.safe_dump(now, sort_keys=False).encode()))


def _options(config: FoldsConfig) -> dict[str, object]:
    given = yaml.safe_load(config.training.to_yaml())
    how = {"folds": config.folds or FOLDS} if config.leave_out is None else {"leave_out": config.leave_out}
    return how | {name: value for name, value in given.items() if name not in PLACES}


def train_all(jobs: dict[Path, TrainingJob], config: FoldsConfig) -> None:
    """Train each in a process of its own. Raises FoldFailed for the first that failed, after all."""
    by_name, failed = {job.name: run for run, job in jobs.items()}, list[tuple[TrainingJob, int]]()
    with tqdm(total=len(jobs), desc="folds", unit="fold", disable=None) as bar:

        def ended(job: TrainingJob, code: int) -> None:
            if outcome(by_name[job.name]) != "done":
                failed.append((job, code))
            bar.update()

        size = pool_size(config.jobs, config.threads, config.device)
        ProcessPool(size=size, threads=config.threads, ended=ended).run(jobs.values())
    if failed:
        first, code = failed[0]
        raise fold_failure(first, code, f"the {len(failed)} of {len(jobs)} that failed")


def fold_failure(job: TrainingJob, code: int, failed: str) -> FoldFailed:
    """The error of a fold that ended with `code`, minus the number of the signal that killed it."""
    if code < 0:
        reason, code = f"killed by {signal.Signals(-code).name}", 128 - code  # as a shell has it
    elif code > 128:  # its log ends with a hint at --resume, after errors of earlier attempts
        reason = f"stopped by {signal.Signals(code - 128).name}"
    else:
        reason = _last_error(job.log)
    remedy = f"the same command makes {failed} again"
    return FoldFailed(f"fold {job.name} failed with exit code {code} ({job.log}); {remedy}\n{reason}", code)


def _last_error(log: Path) -> str:
    """The last error in the output of a fold with what it says may help, but for --resume, which folds do not take."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    starts = [number for number, line in enumerate(lines) if line.startswith(("error: ", "Traceback "))]
    if not starts or lines[starts[-1]].startswith("Traceback "):
        return lines[-1] if lines else "it wrote no output"
    message = [line for line in lines[starts[-1] :] if not line.startswith("--resume ")]
    return "\n".join(message).removeprefix("error: ")


def job(run: Path, fold: str, config: FoldsConfig) -> TrainingJob:
    """The command line that trains a fold, or resumes it."""
    places = {"out": run.parent, "promote": "never"}
    training = replace(config.training, fold=fold, floor=(), margin=TrainConfig.margin)  # those of the final model
    if run.exists() and not (run / CONFIG).exists():
        shutil.rmtree(run)  # killed before its first write
    return _job(run, training, log(run), places)


def final_job(run: Path, folder: Path, config: FoldsConfig) -> TrainingJob:
    """The command line that trains the final model, or resumes it."""
    training = replace(config.training, from_folds=folder, patience=None)
    return _job(run, training, folder / "logs" / "final.log", {"out": config.out, "promote": config.promote})


def _job(run: Path, training: TrainConfig, output: Path, places: dict[str, object]) -> TrainingJob:
    options = output.with_suffix(".yaml")
    options.write_text(training.to_yaml(), encoding="utf-8")
    values = {"config": options, "name": run.name, "resume": "auto"} | places
    if isinstance(training.data, Url):
        values["data"] = training.data.text  # the file has it without its password or signature
    arguments = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return TrainingJob(name=run.name, arguments=["train", *arguments], log=output)
