"""`edgevit completion`: print a shell script that completes commands, options and model names."""

from __future__ import annotations

import argparse
import sys

from edgevit.cli.console import Console
from edgevit.cli.parser import Arguments, Command, subcommands

_BASH = """# bash completion of edgevit. Load it with: source <(edgevit completion bash)
_edgevit() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} words=
    COMPREPLY=()
    if [[ $COMP_CWORD == 1 ]]; then
        words="{commands} --help --version"
    else
        case "${{COMP_WORDS[1]}} $previous" in
{choices}
        esac
        if [[ -z $words && $word == -* ]]; then
            case ${{COMP_WORDS[1]}} in
{options}
            esac
        fi
    fi
    [[ -n $words ]] && mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -o default -F _edgevit edgevit
"""

_ZSH = """# zsh completion of edgevit. Load it with: source <(edgevit completion zsh)
autoload -Uz compinit bashcompinit && compinit && bashcompinit
"""

SHELLS = ("bash", "zsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit completion`."""
    parser.add_argument("shell", choices=SHELLS, help="the shell to print a script for")


def run(arguments: Arguments, console: Console) -> int:
    """Print the script. File names are completed by the shell itself."""
    from edgevit.cli.main import command_line

    script = completion_script(command_line())
    if console.json_path != "-":
        sys.stdout.write(f"{_ZSH}{_zsh_body(script)}" if arguments.shell == "zsh" else script)
    console.finish({"shell": arguments.shell, "script": script})
    return 0


def completion_script(parser: argparse.ArgumentParser) -> str:
    """Return the bash script for a parser: its commands, their options, and the choices of options."""
    commands = dict(subcommands(parser))
    options = [
        f'                {name}) words="{" ".join(_options(command))}" ;;' for name, command in commands.items()
    ]
    choices = [
        f'            "{name} {flag}") words="{" ".join(map(str, action.choices))}" ;;'
        for name, command in commands.items()
        for action in command._actions
        if action.choices
        for flag in action.option_strings or [name]
    ]
    return _BASH.format(commands=" ".join(commands), options="\n".join(options), choices="\n".join(choices))


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return sorted(parser._option_string_actions)


def _zsh_body(script: str) -> str:
    """Return the bash script in the dialect that zsh's bashcompinit understands."""
    return script.partition("\n")[2].replace(
        'mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")', 'COMPREPLY=($(compgen -W "$words" -- "$word"))'
    )


COMMAND = Command(
    name="completion",
    help="print a script that completes commands and options in bash or zsh",
    add_arguments=add_arguments,
    run=run,
)
