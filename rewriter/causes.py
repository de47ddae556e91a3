"""What caused an error, in one line: the part of its message that says so, often neither the first line nor the last.

TorchScript's interpreter puts the graph before the cause and the stack of an op in Python behind it, Triton's compiler
puts the kernel before it, and CUDA and its allocator put advice behind it.
"""

from __future__ import annotations

import re

_INTERPRETER = "Traceback of TorchScript"
_RAISED_THERE = re.compile(r"^(?:RuntimeError|torch\.jit\.Error): ", re.MULTILINE)
_STACK_OF_PYTHON = "\n\nAt:\n"
_POINTER = "^"
_OUT_OF_MEMORY = re.compile(r".*?\bout of memory\. Tried to allocate [\d.]+ \w+")
_NAMES_ITS_KIND = re.compile(r"\w+(?:Error|Exception|Interrupt|Warning)\b")


def cause_of(error: BaseException) -> str:
    """The cause without the kind of error: that of the error it was raised from where it says nothing itself.

    The name of the error's type where nobody says anything.
    """
    chain = [error]
    while _says_nothing(str(chain[-1])) and (origin := chain[-1].__cause__) is not None and origin not in chain:
        chain.append(origin)
    return _line(str(chain[-1])) or type(chain[-1]).__name__


def described(error: BaseException) -> str:
    """The kind of error and its cause: `ValueError: groups must divide the channels`."""
    cause = cause_of(error)
    # An op in Python, called by a graph, puts the name of its own error before the message.
    return cause if _NAMES_ITS_KIND.match(cause) else f"{type(error).__name__}: {cause}"


def memory_ran_out(error: BaseException) -> bool:
    """Whether a device had no memory left, as torch says it, or a graph that ran into it."""
    signs = type(error).__name__, str(error)
    return any(word in sign for word in ("OutOfMemoryError", "out of memory") for sign in signs)


def _says_nothing(message: str) -> bool:
    """Whether there is no message, or one of Triton's that only shows a call whose kernel did not compile."""
    lines = message.split()
    return not lines or lines[-1] == _POINTER


def _line(message: str) -> str:
    if _INTERPRETER in message:
        message = _RAISED_THERE.split(message)[-1]
    lines = [line.strip() for line in message.partition(_STACK_OF_PYTHON)[0].splitlines() if line.strip()]
    if not lines:
        return ""
    if _POINTER in lines:
        pointer = len(lines) - 1 - lines[::-1].index(_POINTER)
        # Without words behind the pointer, what it points at has to do.
        return lines[pointer + 1] if pointer + 1 < len(lines) else " ".join([lines[0], *lines[pointer - 1 : pointer]])
    if (found := _OUT_OF_MEMORY.match(lines[0])) is not None:
        return found.group()
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
