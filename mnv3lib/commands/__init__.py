"""The command line `mnv3`: a module a command, with its help in the docstring. `add` declares options, `run` does it.

What `run` needs it imports itself, so that help and a wrong option wait for no torch.
"""

import argparse
import codecs
import io
import json
import os
import signal
import sys

from mnv3lib.commands import evaluate, export, importing, latency, predict, report, sweep, train, verify
from mnv3lib.commands.options import Parser
from mnv3lib.errors import DivergedError, ExportError, InputError, NotebookError, one_line

COMMANDS = dict(train=train, sweep=sweep, evaluate=evaluate, predict=predict, export=export, latency=latency)
COMMANDS |= {"verify": verify, "report": report, "import": importing}
PLAIN = {"–": "-", "−": "-", "×": "x", "…": "..."}  # for letters that an encoding lacks


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for bad usage, 130 when interrupted.

    A reader that has left, as `head` does, ends the command without a word and with 141, as it would in a shell.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # line by line, so that a log shows at once how far a run is
            stream.reconfigure(line_buffering=True, errors="plain")
    parser = make_parser()
    options = parser.parse_args(arguments)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = options.command(options) or 0
        sys.stdout.flush()
        return code
    except (InputError, OSError, DivergedError, ExportError, NotebookError) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return 141
        print(f"mnv3: error: {one_line(error, 2000)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mnv3: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _plain(error: UnicodeEncodeError) -> tuple[str, int]:
    """What a terminal shows in place of letters that its encoding lacks: the nearest ones, else JSON's escapes."""
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter) or json.dumps(letter)[1:-1] for letter in text), error.end


codecs.register_error("plain", _plain)


def _reader_has_left() -> bool:
    """Whether it is standard output that broke, which an empty line tells, and not a pipe between processes."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more on its way out
        return True
    return False


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="mnv3", description="MobileNet V1, V2 and V3 on CIFAR-100.", formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        text = " ".join(module.__doc__.split())
        command = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.set_defaults(command=module.run, parser=command)
        module.add(command)
    return parser
