"""A whole run as one value: which images, which classifier, how to search, and where results go."""

import runpy
from dataclasses import dataclass, field
from pathlib import Path

from amx_jax.config import Config
from amx_jax.errors import ConfigError, one_line

NAME = "experiment"  # of the variable in a configuration's file


@dataclass(frozen=True)
class Experiment:
    """What ``amx run`` does.

    Attributes:
        data: a folder of photos, a .csv or .parquet file with a column ``path`` (and, where wanted,
            ``id`` and ``target``), or ``tfds:NAME/SPLIT``.
        output: folder of the Parquet files and of what a later run goes on from.
        classifier: its name; `amx classifiers` lists them.
        weights: a file of PyTorch, safetensors or NumPy, a folder with config.json and weights, or
            hf:OWNER/NAME.
        labels: names of the classes, a file with a line each or JSON.
        target: class to explain, by name or index, where the data names none.
        others: photos of other things, as of ``amx explain``.
        first: how many of the images, the first in order; 0 for all.
        rows: explanations in each Parquet file, at most.
        save_every: seconds from one saving of work under way to the next.
        workers: threads that decode images ahead of their use.
        config: how to search and verify.

    Examples:
        >>> Experiment(data="photos").classifier
        'efficientnet_lite0'
    """

    data: str
    output: str = "amx-run"
    classifier: str = "efficientnet_lite0"
    weights: str | None = None
    labels: str | None = None
    target: str | None = None
    others: tuple[str, ...] = ()
    first: int = 0
    rows: int = 1000
    save_every: float = 60.0
    workers: int = 4
    config: Config = field(default_factory=Config)

    def __post_init__(self):
        for name, least in (("first", 0), ("rows", 1), ("workers", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected at least {least}")
        if not self.save_every > 0:
            raise ConfigError(f"save_every: found {self.save_every}, expected more than 0 seconds")


def load_experiment(path: str | Path) -> Experiment:
    """The experiment that a Python file defines; the file is run.

    Args:
        path: of a file that assigns an :class:`Experiment` to ``experiment``.

    Raises:
        ConfigError: no such file, it raises something, or it defines no experiment.
    """
    name = one_line(path)
    try:
        found = runpy.run_path(str(path))
    except FileNotFoundError:
        raise ConfigError(f"{name}: does not exist; check the path") from None
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    except Exception as error:  # whatever the file does
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{name}: cannot be run: {type(error).__name__}: {reason}; expected Python that assigns an "
            f"Experiment to {NAME}"
        ) from error
    if not isinstance(found.get(NAME), Experiment):
        raise ConfigError(
            f"{name}: found no {NAME}, expected `{NAME} = Experiment(data=…)`, as the files in configs/"
        )
    return found[NAME]
