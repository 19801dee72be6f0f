"""`jaxnn completion SHELL`: a script that completes commands, options and their values, made from the parser itself.

The script asks nothing of jaxnn when it runs: completion is at once, and is that of the version that wrote it.
"""

import argparse
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SHELLS = ("bash", "zsh", "fish")
_FILES = ("FILE", "PATH", "PAGE", "FOLDER", "RUN", "TARGET", "OTHER", "A [B]")  # metavars of values that are files
_HOWTO = """put it where the shell finds it:
  bash   eval "$(jaxnn completion bash)"               in ~/.bashrc
  zsh    eval "$(jaxnn completion zsh)"                in ~/.zshrc, after compinit
  fish   jaxnn completion fish > ~/.config/fish/completions/jaxnn.fish"""


@dataclass(frozen=True)
class Option:
    """An option: its spellings, its help, and what value it takes.

    Attributes:
        flags: "-o", "--out".
        text: Its help.
        choices: The values it may have; () where they are not known.
        files: Whether the value is a file or a folder.
        flag: Whether it takes no value.
    """

    flags: tuple[str, ...]
    text: str
    choices: tuple[str, ...]
    files: bool
    flag: bool


@dataclass(frozen=True)
class Command:
    """What may follow the words of a command.

    Attributes:
        path: Its words, () for the program alone.
        commands: Names and help of the commands below it.
        options: Its options.
        choices: The values of its arguments, where they are known.
        files: Whether its arguments are files.
    """

    path: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]
    options: tuple[Option, ...]
    choices: tuple[str, ...]
    files: bool


def register(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Adds `completion` to the parser's commands; the script is made from `parser`."""
    completion = commands.add_parser(
        "completion",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="write a script that completes this program's commands in a shell",
        description=f"Writes a shell script to the standard output;\n{_HOWTO}",
    )
    completion.add_argument("shell", choices=SHELLS, help="which shell")
    completion.set_defaults(run=lambda args: _print(script(args.shell, parser)))


def _print(text: str) -> int:
    print(text)
    return 0


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for a shell."""
    write: dict[str, Callable[[list[Command]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
    return write[shell](list(walk(parser)))


def walk(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[Command]:
    """Every command of a parser, the program itself first."""
    below: list[tuple[str, str, argparse.ArgumentParser]] = []
    options: list[Option] = []
    choices: list[str] = []
    files = False
    for action in parser._actions:  # argparse has no public way to ask
        text = (action.help or "").replace("%%", "%")
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            below += [(name, told.get(name, ""), child) for name, child in action.choices.items()]
            continue
        known = tuple(map(str, action.choices or ()))
        named = isinstance(action.metavar, str) and action.metavar in _FILES
        if action.option_strings:
            options.append(Option(tuple(action.option_strings), text, known, named, action.nargs == 0))
        else:
            choices += known
            files |= named
    yield Command(path, tuple((name, text) for name, text, _ in below), tuple(options), tuple(choices), files)
    for name, _, child in below:
        yield from walk(child, (*path, name))


def _key(path: tuple[str, ...]) -> str:
    """A command's words as a shell variable holds them: " bench run"."""
    return "".join(f" {word}" for word in path)


def _flags(command: Command) -> list[str]:
    return [flag for option in command.options for flag in option.flags]


def bash(commands: list[Command]) -> str:
    """For bash 3.2 and newer."""
    known = "|".join(shlex.quote(_key(c.path)) for c in commands if c.path)
    values, words = [], []
    for command in commands:
        key = _key(command.path)
        for option in command.options:
            if option.flag:
                continue
            pattern = "|".join(shlex.quote(f"{key}:{flag}") for flag in option.flags)
            kind = "files=1" if option.files else f"words={shlex.quote(' '.join(option.choices))}"
            values.append(f"        {pattern}) {kind} ;;")
        rest = " ".join([*(name for name, _ in command.commands), *command.choices])
        words.append(
            f"        {shlex.quote(key)}) words={shlex.quote(rest)} flags={shlex.quote(' '.join(_flags(command)))}"
            f"{' files=1' if command.files else ''} ;;"
        )
    return f"""# Completion of jaxnn in bash, by `jaxnn completion bash`.
_jaxnn() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} at="" words="" flags="" files="" i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at ${{COMP_WORDS[i]}}" in
        {known}) at="$at ${{COMP_WORDS[i]}}" ;;
        esac
    done
    COMPREPLY=()
    local value=1
    case "$at:$prev" in
{chr(10).join(values)}
        *) value="" ;;
    esac
    if [ -z "$value" ]; then
        case "$at" in
{chr(10).join(words)}
        esac
        case "$cur" in -*) words=$flags files="" ;; esac
    fi
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    fi
    if [ -n "$files" ]; then
        local IFS=$'\\n'
        COMPREPLY+=($(compgen -f -- "$cur"))
        compopt -o filenames 2>/dev/null
    fi
}}
complete -F _jaxnn jaxnn"""


def zsh(commands: list[Command]) -> str:
    """For zsh with its completion system loaded."""
    known = "|".join(shlex.quote(_key(c.path)) for c in commands if c.path)

    def described(pairs: list[tuple[str, str]]) -> str:
        return " ".join(shlex.quote(f"{name.replace(':', chr(92) + ':')}:{text}") for name, text in pairs)

    values, words = [], []
    for command in commands:
        key = _key(command.path)
        for option in command.options:
            if not option.flag:
                pattern = "|".join(shlex.quote(f"{key}:{flag}") for flag in option.flags)
                does = "_files" if option.files else ":"
                if option.choices:
                    does = f"compadd -- {' '.join(map(shlex.quote, option.choices))}"
                values.append(f"        ({pattern}) {does}; return ;;")
        names = [*command.commands, *((choice, choice) for choice in command.choices)]
        flags = [(flag, option.text) for option in command.options for flag in option.flags]
        words.append(
            f"        ({shlex.quote(key)}) names=({described(names)}) flags=({described(flags)})"
            f"{' files=1' if command.files else ''} ;;"
        )
    return f"""#compdef jaxnn
# Completion of jaxnn in zsh, by `jaxnn completion zsh`.
_jaxnn() {{
    local at="" files="" i
    local -a names flags
    for ((i = 2; i < CURRENT; i++)); do
        case "$at $words[i]" in
        ({known}) at="$at $words[i]" ;;
        esac
    done
    case "$at:$words[CURRENT-1]" in
{chr(10).join(values)}
    esac
    case "$at" in
{chr(10).join(words)}
    esac
    if [[ $PREFIX == -* ]]; then
        _describe -o option flags
    else
        (( $#names )) && _describe command names
        [[ -n $files ]] && _files
    fi
}}
if [[ $funcstack[1] == _jaxnn ]]; then
    _jaxnn
else
    compdef _jaxnn jaxnn
fi"""


def fish(commands: list[Command]) -> str:
    """For fish 3 and newer."""

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    known = " ".join(quoted(_key(c.path)) for c in commands if c.path)
    lines = []
    for command in commands:
        here = f"complete -c jaxnn -n {quoted('__jaxnn_at ' + quoted(_key(command.path)))}"
        lines += [f"{here} -a {quoted(name)} -d {quoted(text)}" for name, text in command.commands]
        lines += [f"{here} -a {quoted(choice)}" for choice in command.choices]
        if command.files:
            lines.append(f"{here} -F")
        for option in command.options:
            spelled = " ".join(f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in option.flags)
            value = "" if option.flag else " -r -F" if option.files else " -x"
            if option.choices:
                value += f" -a {quoted(' '.join(option.choices))}"
            lines.append(f"{here} {spelled}{value} -d {quoted(option.text)}")
    return f"""# Completion of jaxnn in fish, by `jaxnn completion fish`.
function __jaxnn_at
    set -l at ""
    for word in (commandline -opc)[2..-1]
        contains -- "$at $word" {known}; and set at "$at $word"
    end
    test "$at" = "$argv[1]"
end
complete -c jaxnn -f
{chr(10).join(lines)}"""
