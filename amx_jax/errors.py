"""The errors that bad input raises; the command prints each as one line."""


class AmxError(Exception):
    """Base of all errors the user can cause and mend."""


class WeightsError(AmxError):
    """A weight file is unreadable, unsafe, or does not fit its model."""


class UnknownNameError(AmxError):
    """A classifier, class or option that does not exist; the message has the nearest names."""


class ImageError(AmxError):
    """A file that is not a readable image."""


class OutputError(AmxError):
    """The output cannot be written where it was asked for."""


class ConfigError(AmxError):
    """A configuration value outside its range."""
