"""The errors that bad input raises, and parts of their messages: the command prints one line each."""

import difflib
from pathlib import Path


class AmxError(Exception):
    """Base of all errors the user can cause and mend."""


class WeightsError(AmxError):
    """A weight file is unreadable, unsafe, or does not fit its model."""


class ClassifierError(AmxError):
    """A classifier that does not do what an explainer needs."""


class LabelsError(AmxError):
    """The names of the classes are unreadable, or not as many as the classes."""


class UnknownNameError(AmxError):
    """A classifier, class or option that does not exist; the message has the nearest names."""


class ImageError(AmxError):
    """A file that is not a readable image."""


class AnnotationError(AmxError):
    """Ground truth that is unreadable, or does not fit its photo."""


class OutputError(AmxError):
    """The output cannot be written where it was asked for."""


class ConfigError(AmxError):
    """A configuration value outside its range."""


def one_line(path: str | Path) -> str:
    r"""A path as a one-line message shows it: escaped where it would break the line.

    Examples:
        >>> one_line("photos/cat.png"), one_line("two\nlines.png")
        ('photos/cat.png', "'two\\nlines.png'")
    """
    text = str(path)
    return text if text.isprintable() else ascii(text)


def nearest(text: str, names) -> str:
    """The end of an error message that offers the names most like ``text``.

    Examples:
        >>> nearest("beegle", ["beagle", "tractor"])
        '; nearest: beagle'
    """
    by_lower = {name.lower(): name for name in names}
    text = text.lower()
    parts = [name for name in by_lower if text and text in name][:5]
    close = parts or difflib.get_close_matches(text, by_lower, n=5, cutoff=0.5)
    return f"; nearest: {', '.join(by_lower[name] for name in close)}" if close else ""
