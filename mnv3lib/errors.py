"""The one exception for everything that comes from outside and cannot be used."""


class InputError(ValueError):
    """An argument, a file or a folder cannot be used.

    The message is one line that names the culprit and the mend; the command line prints it as it is.
    """


def choose(what: str, value, choices) -> None:
    """Raise InputError unless `value` is one of `choices`; the message lists them."""
    if value not in list(choices):
        raise InputError(f"unknown {what} {value!r}: choose from {', '.join(map(str, choices))}")


def one_line(error: Exception | str, most: int = 200) -> str:
    """What an error says as one line of printable characters, cut where it is longer than `most`."""
    text = " ".join(str(error).split())[:most]
    return "".join(letter if letter.isprintable() else "?" for letter in text) or type(error).__name__
